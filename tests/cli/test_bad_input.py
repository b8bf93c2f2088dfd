"""Wrong arguments: one clear line, exit code 2, nothing written, and no torch to wait for."""

import sys
from pathlib import Path

import pytest

from unitscale.cli import main


@pytest.fixture
def text_path(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"some text. " * 1000)
    return path


def assert_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> str:
    """Run the command, which must fail as wrong usage does; its one line."""
    monkeypatch.setattr(sys, "argv", ["unitscale", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("unitscale: ")
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps is 0; expected an integer from 1 to 2147483647"),
        (["--steps", "many"], "Invalid value for '--steps'"),
        (["--stepz", "3"], "No such option: --stepz"),
        (["--recipes", "fp32,fp9"], "unknown recipe 'fp9'; the recipes are fp32, bf16"),
        (["--recipes", "fp32,fp9"], "Did you mean 'fp8'?"),
        (["--recipes", ","], "--recipes is ','"),
        (["--seeds", "0"], "--seeds is 0; expected from 1 to 1000"),
        (["--threads", "0"], "--threads is 0; expected from 1 to 1024"),
        (["--lr", "-1"], "lr is -1.0; expected a number above 0"),
        (["--model", "atention"], "unknown layer 'atention'; use attention, conv, rnn"),
        (["--norm", "both"], "unknown norm 'both'"),
        (["--width", "30", "--set", "model.heads=4"], "width=30 is not a multiple"),
        (["--inner", "nvfuser"], "inner is 'nvfuser'; expected 'auto', 'eager' or 'inductor'"),
        (["--set", "stpes=3"], "no 'stpes'"),
        (["--set", "steps"], "--set steps: expected KEY=VALUE"),
        (["--set", "seed=3"], "--set seed=3: use --seeds"),
        (["--set", "model.wdth=3"], "no option 'wdth'"),
    ],
)
def test_wrong_option_is_explained(
    arguments: list[str],
    message: str,
    text_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(text_path.parent)
    line = assert_refused(capsys, monkeypatch, "compare", "--data", text_path, *arguments)
    assert message in line
    assert list(Path.cwd().iterdir()) == [text_path]


@pytest.mark.parametrize("command", ["compare", "train"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data.txt does not exist; expected a text file"),
        (b"", "data.txt is empty; expected a text file"),
        (b"short", "data.txt is too short: 5 bytes, where one batch of 16 windows of 129"),
    ],
)
def test_wrong_text_is_explained(
    command: str,
    content: bytes | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    out = tmp_path / "out"
    assert message in assert_refused(capsys, monkeypatch, command, "--data", path, "--out", out)
    assert not out.exists()


def test_text_that_is_a_folder_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = assert_refused(capsys, monkeypatch, "compare", "--data", tmp_path)
    assert "is a directory; expected a text file" in line


@pytest.mark.parametrize("command", ["compare", "train"])
def test_unwritable_out_is_explained(
    command: str,
    text_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = assert_refused(
        capsys, monkeypatch, command, "--data", text_path, "--out", text_path / "out"
    )
    assert "cannot write to the folder" in line
    assert "Not a directory" in line


@pytest.mark.parametrize("name", ["results.json", "loss.png", "runs"])
def test_folder_with_results_is_left_alone(
    name: str,
    text_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = text_path.parent / "out"
    out.mkdir()
    (out / name).write_text("precious")
    line = assert_refused(capsys, monkeypatch, "compare", "--data", text_path, "--out", out)
    assert f"holds a comparison already ({name} exists); add --resume" in line
    assert (out / name).read_text() == "precious"


def test_unknown_command_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "No such command 'comapre'" in assert_refused(capsys, monkeypatch, "comapre")
