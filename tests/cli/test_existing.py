"""`unitscale compare --model` with models that are left as they are."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from train.tiny import text_corpus
from unitscale.cli import main

TINY = ["--batch-size", "4", "--sequence-length", "16", "--set", "eval_windows=8", "--steps", "6"]
OWN = """
from torch import nn
def build(width=8):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, 256))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text and a model in it."""
    text_corpus(tmp_path)
    (tmp_path / "own_model_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a comparison."""
    line = ["unitscale", "compare", "--data", "text.txt", *TINY, *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, *capsys.readouterr()


def test_unmodified_model_under_several_recipes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    small = ["--width", 32, "--depth", 1, "--recipes", "fp32,fp32-units,fp8-none,fp8,fp8-current"]
    code, out, err = run(monkeypatch, capsys, "--model", "gpt2", *small, "--json", "--out", "out")
    assert code == 0, err
    results = json.loads(out)
    assert results["model"] == "gpt2"
    assert results["model_config"] == {"context": 16, "width": 32, "depth": 1}
    runs = {r["recipe"]: r for r in results["runs"]}
    assert runs["fp32-units"]["valid_loss"] == runs["fp32"]["valid_loss"]
    assert runs["fp8"]["share_in_range"]["gradients"] == 1.0
    assert runs["fp8-none"]["share_in_range"] == runs["fp32"]["share_in_range"]
    assert len({r["lr"] for r in results["runs"]}) == 1
    assert "gpt2 model" in (folder / "out" / "report.html").read_text()


def test_own_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "own_model_of_test:build", "--set", "model.width=16"]
    code, out, err = run(monkeypatch, capsys, *model, "--recipes", "fp32,fp8", "--out", "out")
    assert code == 0, err
    assert "own_model_of_test:build model on text.txt" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no_model_of_test:build"], "there is no module 'no_model_of_test'"),
        (["--model", "own_model_of_test:bild"], "has no 'bild'; did you mean 'build'?"),
        (["--model", "own_model_of_test:build", "--width", 64], "--width 64 is not an option"),
        (["--model", "gpt2", "--norm", "post"], "--norm post is not an option of gpt2"),
        (["--model", "llama", "--unit-lr", 1], "--unit-lr has no meaning for llama"),
        (["--model", "gpt2", "--set", "model.hedas=3"], "unexpected keyword argument 'hedas'"),
        (["--model", "gpt2", "--recipes", "fp9"], "Did you mean 'fp8'?"),
        (["--set", "existing=lama"], "existing is 'lama'; expected gpt2, llama or MODULE:FACTORY"),
        (["--set", "remeasure=often"], "remeasure is 'often'; expected 'geometric'"),
    ],
)
def test_wrong_model_is_one_line_and_exit_code_2(
    arguments: list[Any],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.iterdir())
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before
