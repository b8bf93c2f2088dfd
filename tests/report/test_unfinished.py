"""What a killed process left of a folder goes; what a living one writes, and all else, stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unitscale.deploy.export import new_folder
from unitscale.report import unfinished
from unitscale.report.atomic import UNFINISHED
from unitscale.report.unfinished import is_alive, machine, remove_left_over, unfinished_folder

WRITING = """
import sys
from pathlib import Path
from unitscale.report.unfinished import unfinished_folder
with unfinished_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that is writing the folder `out`, and what it has so far."""
    line = [sys.executable, "-c", WRITING, str(tmp_path / "out")]
    started = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    try:
        yield started, Path(started.stdout.readline().strip())
    finally:
        started.kill()
        started.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """End a process as `kill -9` does, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_living_process_keeps_its_folder_and_a_killed_one_leaves_it_to_the_next(
    writer: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, left = writer
    assert (left / "weights").exists()
    assert remove_left_over(tmp_path / "out") == []
    kill(process)
    assert (left / "weights").exists()  # nothing else would clean it
    assert remove_left_over(tmp_path / "other") == []
    with new_folder(tmp_path / "out") as folder:
        assert not left.exists()
        (folder / "weights").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "weights").read_text() == "whole"


def test_a_lock_that_is_held_keeps_a_folder_whoever_its_name_says(
    writer: tuple[subprocess.Popen[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a process of another container, whose number is none here."""
    _, folder = writer
    monkeypatch.setattr(unfinished, "is_alive", lambda process: False)
    assert remove_left_over(tmp_path / "out") == []
    assert folder.exists()


def test_what_only_looks_like_it_stays(tmp_path: Path) -> None:
    gone = "4194305"  # one more than Linux numbers
    assert not is_alive(int(gone))
    for name in (
        f".out.{machine()}-{os.getpid()}-abc",  # of this process
        f".out.00000000-{gone}-abc",  # of another machine
        f".outer.{machine()}-{gone}-abc",
        f".out.{machine()}-{gone}",
        ".out.k3j2h1gf",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / f".out.{machine()}-{gone}-file").touch()
    (tmp_path / f".out.{machine()}-{gone}-link").symlink_to(tmp_path / ".out.k3j2h1gf")
    before = sorted(tmp_path.iterdir())
    assert remove_left_over(tmp_path / "out") == []
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / f".out.{machine()}-{gone}-abc").mkdir()
    assert len(remove_left_over(tmp_path / "out")) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with unfinished_folder(tmp_path / "out") as folder:
            assert folder in UNFINISHED
            (folder / "weights").write_text("half")
            raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        fail()
    assert list(tmp_path.iterdir()) == []
    assert not UNFINISHED


def test_a_process_is_alive_until_it_is_gone() -> None:
    assert is_alive(os.getpid())
    assert is_alive(10**30)  # no number of a process: not known, so not gone
