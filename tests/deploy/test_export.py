"""The files of an export: whole or absent, with those of a tokenizer."""

from pathlib import Path
from typing import Any

import pytest

from deploy.small import Gated, evaluated
from unitscale import deploy


class Tokenizer:
    """What an export needs of one."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def save_pretrained(self, folder: Path) -> None:
        if self.fails:
            raise OSError("no space left on device")
        (folder / "tokenizer.json").write_text("{}")


def test_tokenizer_files_are_passed_through(tmp_path: Path) -> None:
    model = evaluated(Gated())
    deploy.export(model, tmp_path / "a", "safetensors", tokenizer=Tokenizer())
    deploy.export(model, tmp_path / "b", "safetensors", tokenizer=tmp_path / "a")
    assert (tmp_path / "b/tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [(3, "tokenizer is a int; expected one of"), (".", "has no files of a tokenizer")],
)
def test_a_wrong_tokenizer_is_refused_first(tokenizer: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        deploy.export(evaluated(Gated()), tmp_path / "out", "safetensors", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        deploy.export(
            evaluated(Gated()), tmp_path / "out", "safetensors", tokenizer=Tokenizer(fails=True)
        )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path: Path) -> None:
    model = evaluated(Gated())
    (tmp_path / "out").mkdir()
    deploy.export(model, tmp_path / "out", "safetensors")
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="out is not empty; choose a new folder"):
        deploy.export(model, tmp_path / "out", "safetensors")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ValueError, match="is a file; expected a new folder"):
        deploy.export(model, next(iter(before)), "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "gguf"}, "format is 'gguf'; expected one of compressed-tensors, modelopt"),
        ({"differences": "hide"}, "differences is 'hide'; expected 'refuse' or 'report'"),
    ],
)
def test_unknown_words_are_refused(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        deploy.export(evaluated(Gated()), tmp_path / "out", **options)
