"""Workers and threads: never more threads than cores, and the threads of old runs are kept."""

from pathlib import Path

import pytest

from unitscale.sweep.cores import Share, available_cores, share_of


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        ({}, Share(8, 1)),
        ({"runs": 3}, Share(3, 2)),
        ({"runs": 1}, Share(1, 8)),
        ({"runs": 0}, Share(1, 8)),
        ({"workers": 2}, Share(2, 4)),
        ({"workers": 3}, Share(3, 2)),
        ({"threads": 4}, Share(2, 4)),
        ({"threads": 3, "workers": 2}, Share(2, 3)),
        ({"recorded": 2}, Share(4, 2)),
        ({"recorded": 2, "workers": 1}, Share(1, 2)),
        ({"recorded": 16}, Share(1, 16)),  # a machine with fewer cores: the bits stay
        ({"on_gpu": True}, Share(1, 8)),
    ],
)
def test_cores_are_shared(asked: dict, share: Share) -> None:
    assert share_of(8, **{"runs": 100} | asked) == share


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"workers": 9}, "9 workers with 1 thread each need 9 cores, and this machine gives 8"),
        ({"workers": 2, "threads": 5}, "2 workers with 5 threads each need 10 cores"),
        ({"workers": 0}, "--workers is 0; expected at least 1"),
        ({"threads": -1}, "--threads is -1; expected at least 1"),
        ({"threads": 2, "recorded": 1}, "--threads is 2, and the runs in this folder have 1 each"),
        ({"workers": 5, "recorded": 2}, "5 workers with 2 threads each need 10 cores"),
    ],
)
def test_more_threads_than_cores_are_refused(asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share_of(8, **{"runs": 100} | asked)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("x", None)],
)
def test_quota_of_a_container_counts(text: str, limit: int | None, tmp_path: Path) -> None:
    path = tmp_path / "cpu.max"
    everything = available_cores(path)  # there is no such file yet
    path.write_text(text)
    assert available_cores(path) == (limit or everything)
