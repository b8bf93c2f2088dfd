"""A disk that is full is a run that failed, exit code 1 and one line, and no wrong argument."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from disk import largest_file
from growth import tiny
from unitscale.cli import main
from unitscale.cli.exit import checking_arguments, is_of_the_machine

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), torch.ones(2, 8)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of transformers, and a file with a factory."""
    folder = tmp_path_factory.mktemp("here")
    tiny.llama(vocab_size=256).save_pretrained(folder / "model")
    (folder / "mine.py").write_text(FACTORY)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "grow model --width 24 --out out",
        "compress model --target ffn=8 --importance magnitude --out out",
        "quantize mine.py:build --recipe int8 --out out",
        "figure snr --formats E2M1FN --out out.png",
    ],
)
def test_a_full_disk_is_exit_code_1(
    line: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    before = sorted(path.name for path in here.iterdir())
    monkeypatch.setattr(sys, "argv", ["unitscale", *line.split()])
    with largest_file(300), pytest.raises(SystemExit) as stop:
        main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 1, last
    assert "too large" in last.lower()
    assert last.startswith("unitscale: ")
    assert sorted(path.name for path in here.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_on_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "unitscale", "formats"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def cause(inner: Exception) -> OSError:
    """An error of ours that was raised for another."""
    error = OSError("export: out cannot be written")
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 1),
        (OSError("cannot be written: I/O error: No space left on device (os error 28)"), 1),
        (cause(OSError(errno.EIO, os.strerror(errno.EIO))), 1),
        (cause(ValueError("nothing of the kind")), 2),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "nowhere"), 2),
        (OSError("no such file (os error 2)"), 2),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "theirs"), 2),
        (ValueError("width is 3"), 2),
    ],
)
def test_what_the_machine_lacks_is_told_from_a_wrong_argument(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_of_the_machine(error) == (code == 1)
    with pytest.raises(SystemExit) as stop, checking_arguments():
        raise error
    assert stop.value.code == code
    assert capsys.readouterr().err.count("\n") == 1
