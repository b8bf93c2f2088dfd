"""A folder where a file is expected, and a file where a folder is: one line that says so."""

import json
import sys
from pathlib import Path

import pytest

from unitscale.cli import main
from unitscale.cli.exit import in_words
from unitscale.memory.source import read_config

A_FOLDER_FOR_A_FILE = {
    "train --data D --out o": "D is a directory; expected a text file",
    "compare --data D --out o": "D is a directory; expected a text file",
    "sweep D --out o": "D is a folder; expected a file",
    "sweep missing.toml --out o": "missing.toml does not exist",
    "plan-memory --config D": "D has no config.json; expected a model's folder, or that file",
    "plan-memory --config missing.json": "missing.json does not exist",
    "plan-memory --model D.py:f": "there is no file D.py",
    "quantize model --recipe fp8 --out o --calibration-data D": "D is a folder; expected a text",
    "laws fit D --out o": "D has no runs.csv and no results.json",
    "doctor --recipe D.py:x": "there is no file D.py",
    "recipes D.py:x": "there is no file D.py",
}
A_FILE_FOR_A_FOLDER = {
    "train --out F": "cannot write to the folder F",
    "compare --out F/o": "cannot write to the folder F/o",
    "analyse gpt2 --out F": "cannot write to the folder F",
    "export F --out o": "F holds no run",
    "export D --out F": "F is a file; expected a new folder",
    "compress F --target 50% --out o": "F is no folder",
    "compress D --target 50% --out F": "F is a file; expected a new or an empty folder",
    "compress D --target 50% --out F/o": "o is to be inside of",
    "grow F --width 64 --out o": "F is no folder",
    "grow D --width 64 --out F": "F is a file; expected a new or an empty folder",
    "quantize F --recipe fp8 --out o": "'F' is neither a folder nor a model",
    "quantize gpt2 --recipe fp8 --out F": "F is a file; expected a new folder",
    "figure exponents F": "F",
}
CASES = A_FOLDER_FOR_A_FILE | A_FILE_FOR_A_FOLDER


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders D and D.py, a file F, and a folder with a model of transformers."""
    made = tmp_path_factory.mktemp("place")
    for name in ("D", "D.py", "model"):
        (made / name).mkdir()
    (made / "F").write_text("text")
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 256}
    (made / "model" / "config.json").write_text(json.dumps(config))
    return made


def run(monkeypatch: pytest.MonkeyPatch, place: Path, *arguments: str) -> int:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["unitscale", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("line", CASES)
def test_one_line_says_what_it_is_and_what_was_expected(
    line: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(place.rglob("*"))
    assert run(monkeypatch, place, *line.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert CASES[line] in said
    assert "Errno" not in said
    assert sorted(place.rglob("*")) == before


def test_the_folder_of_a_model_stands_for_its_configuration(place: Path) -> None:
    assert read_config(place / "model") == read_config(place / "model" / "config.json")


def test_errors_of_the_system_are_told_in_words_and_others_as_they_are(tmp_path: Path) -> None:
    def of(act: object) -> str:
        with pytest.raises(OSError, match=r"Errno") as caught:
            act()
        return in_words(caught.value)

    file = tmp_path / "file"
    file.touch()
    assert of(tmp_path.read_text) == f"{tmp_path} is a folder; expected a file"
    assert of((file / "x").read_text).endswith("file/x is in a file, or is one; expected a folder")
    assert of((tmp_path / "none").read_text).startswith(f"{tmp_path / 'none'} does not exist")
    assert in_words(OSError(28, "No space left on device", "a")) == "a: No space left on device"
    assert in_words(OSError("in our own words")) == "in our own words"
    assert in_words(ValueError("x")) == "x"
