"""The cores that this process may use, and how the workers of a sweep share them. No torch."""

import os
from dataclasses import dataclass
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much of the machine a container may have: microseconds and a period."""


@dataclass(frozen=True)
class Share:
    """So many processes with so many threads each."""

    workers: int
    threads: int


def available_cores(quota: Path = QUOTA) -> int:
    """How many cores this process may keep busy: by its affinity and its container's quota."""
    own = getattr(os, "sched_getaffinity", None)
    count = len(own(0)) if own else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        limit = int(allowed) // int(period)
    except (OSError, ValueError):  # no such file, or `max`
        return count
    return max(1, min(count, limit))


def share_of(
    cores: int,
    *,
    runs: int,
    workers: int | None = None,
    threads: int | None = None,
    recorded: int | None = None,
    on_gpu: bool = False,
) -> Share:
    """How many workers, with how many threads each: never more threads than cores.

    Args:
        runs: that there are to make; more workers than these would idle.
        workers, threads: as asked for; None leaves it open.
        recorded: threads of the runs that the folder holds. It is kept, even on a machine with
            fewer cores: the last bits of a run depend on it.
        on_gpu: the runs need a GPU, which they share: one worker unless more are asked for.

    Raises:
        ValueError: fewer than one, more than there are cores for, or other threads than recorded.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; expected at least 1")
    if recorded is not None and threads not in (None, recorded):
        raise ValueError(
            f"--threads is {threads}, and the runs in this folder have {recorded} each, on which "
            "their last bits depend; leave it out, or choose another folder"
        )
    given = threads if recorded is None else recorded
    if workers is None:
        most = max(1, cores // given) if given else cores
        workers = 1 if on_gpu else max(1, min(most, runs))
    if given is None:
        given = max(1, cores // workers)
    is_kept = recorded is not None and workers == 1
    if workers * given > cores and not is_kept:
        raise ValueError(
            f"{workers} workers with {given} thread{'s' * (given != 1)} each need "
            f"{workers * given} cores, and this machine gives {cores}; use fewer --workers or "
            "--threads"
        )
    return Share(workers, given)
