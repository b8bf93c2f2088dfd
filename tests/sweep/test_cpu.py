"""The CPU time of a run: parts add up, and what is done already costs nothing."""

import time
from pathlib import Path

import pytest

from unitscale.sweep.cpu import FILE, counting_cpu, cpu_seconds
from unitscale.train.lock import InUseError
from unitscale.train.run_folder import RESULT


def work() -> None:
    """Take a hundredth of a second of CPU time."""
    began = time.process_time()
    while time.process_time() - began < 0.01:
        pass


def stop_after_work() -> None:
    """A part of a run that Ctrl-C ends."""
    work()
    raise KeyboardInterrupt


def test_parts_of_a_run_add_up(tmp_path: Path) -> None:
    assert cpu_seconds(tmp_path) is None
    with counting_cpu(tmp_path):
        work()
    first = cpu_seconds(tmp_path)
    assert first is not None
    assert first >= 0.01
    with pytest.raises(KeyboardInterrupt), counting_cpu(tmp_path):
        stop_after_work()
    second = cpu_seconds(tmp_path)
    assert second is not None
    assert second >= first + 0.01


def test_a_run_that_is_done_or_held_gets_none(tmp_path: Path) -> None:
    with pytest.raises(InUseError), counting_cpu(tmp_path):
        raise InUseError("held")
    (tmp_path / RESULT).write_text("{}")
    with counting_cpu(tmp_path):
        work()
    assert not (tmp_path / FILE).exists()


def test_a_folder_that_was_never_made_or_a_damaged_file_is_no_time(tmp_path: Path) -> None:
    with counting_cpu(tmp_path / "nowhere"):
        pass
    assert not (tmp_path / "nowhere").exists()
    for text in ("{", "[]", '{"cpu_s": "x"}'):
        (tmp_path / FILE).write_text(text)
        assert cpu_seconds(tmp_path) is None
