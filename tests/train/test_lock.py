"""One process in a folder: the second is told, and a killed one leaves no lock behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from unitscale.train import lock
from unitscale.train.lock import InUseError, locked

HOLD = """
import sys, time
from pathlib import Path
from unitscale.train import lock
if sys.argv[2] == "marker":
    lock.fcntl = None
with lock.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["kernel", "marker"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel's locks, and the file that stands for them where there are none."""
    if request.param == "marker":
        monkeypatch.setattr(lock, "fcntl", None)
    return request.param


def hold(folder: Path, way: str) -> "subprocess.Popen[str]":
    """A process that holds the folder."""
    line = [sys.executable, "-c", HOLD, str(folder), way]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_process_is_told_and_a_killed_one_leaves_nothing(way: str, tmp_path: Path) -> None:
    process = hold(tmp_path, way)
    try:
        with pytest.raises(InUseError, match="is in use by another process"), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_is_let_go_after_an_error(way: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path), pytest.raises(InUseError), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "held"),
    [
        (f"{socket.gethostname()} {os.getpid()}", True),
        (f"{socket.gethostname()} {2**22 + 1}", False),  # beyond the largest number of a process
        ("another-machine 1", True),
        ("", True),
    ],
    ids=["this process", "process that is gone", "other machine", "empty"],  # equal in all workers
)
def test_marker_of_a_process_that_is_gone_is_taken_over(
    content: str, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    path = tmp_path / lock.MARKER
    path.write_text(content)
    if held:
        with pytest.raises(InUseError, match=r"delete .*in_use if it is not"), locked(tmp_path):
            pass
        assert path.read_text() == content
    else:
        with locked(tmp_path):
            assert path.read_text().endswith(str(os.getpid()))
