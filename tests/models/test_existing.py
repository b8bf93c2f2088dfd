"""Names of models: what is found, and one line that says what is not."""

import re
from pathlib import Path

import pytest

from unitscale.models.existing import find_factory, is_existing

MODULE = """
import torch
def build(width=8):
    return torch.nn.Linear(width, width)
answer = 42
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # find_factory adds it too; this takes it away after
    (tmp_path / "my_model_of_test.py").write_text(MODULE)
    (tmp_path / "my_broken_of_test.py").write_text("1 / 0")
    (tmp_path / "my_needy_of_test.py").write_text("import no_such_thing")
    return "my_model_of_test"


def test_names_of_existing_models() -> None:
    assert is_existing("gpt2")
    assert is_existing("a.b:build")
    assert not is_existing("attention")


def test_factory_is_found_in_the_working_directory(module: str) -> None:
    assert find_factory(f"{module}:build", {"width": 4})(width=4).in_features == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_model_of_test:built", "has no 'built'; did you mean 'build'?"),
        ("my_model_of_test:answer", "is a int; expected a function or a class"),
        ("my_model_of_tset:build", "there is no module 'my_model_of_tset'"),
        ("my_broken_of_test:build", "failed: ZeroDivisionError: division by zero"),
        ("my_needy_of_test:build", "failed: No module named 'no_such_thing'"),
        ("my_model_of_test:", "expected MODULE:FACTORY"),
    ],
)
def test_wrong_name_is_explained(name: str, message: str, module: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        find_factory(name)


def test_option_that_the_factory_does_not_take_is_explained(module: str) -> None:
    with pytest.raises(ValueError, match=r"'depth': 3.*unexpected keyword argument 'depth'"):
        find_factory(f"{module}:build", {"depth": 3})


def test_missing_transformers_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitscale.models.existing.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"llama needs transformers; run: pip install"):
        find_factory("llama")
