"""What hangs ends, with the place where it does."""

import signal
import subprocess
import sys

import pytest

from house.tree import REPOSITORY

HANGS = """
import ctypes, sys
import hang
hang.watch(2)
hang.end_after({seconds})
def waits_in_c():
    ctypes.PyDLL(None).usleep(300_000)  # with the interpreter's lock
waits_in_c()
hang.end_after(0)
"""


def ended(seconds: float) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", HANGS.format(seconds=seconds)]
    return subprocess.run(line, cwd=REPOSITORY / "tests", capture_output=True, text=True)


def test_what_hangs_in_c_is_ended_and_says_where():
    done = ended(0.05)
    assert done.returncode == -signal.SIGALRM
    assert "in waits_in_c" in done.stderr


@pytest.mark.parametrize("seconds", [0, 60])
def test_what_ends_in_time_says_nothing(seconds):
    done = ended(seconds)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(1234)
def test_a_test_has_the_time_that_it_asks_for():
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    assert 1000 < left <= 1234


def test_every_other_test_has_ten_minutes():
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    assert 400 < left <= 600
