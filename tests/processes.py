"""Processes of a test that work together over gloo."""

import faulthandler
import gc
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["PRELOADED", "group", "group_of_one", "start_together", "work_together"]

PRELOADED = [
    "torch.distributed.fsdp",
    "torch._dynamo",
    "unitscale.distributed",
    "unitscale.train",
    "unitscale.units",
    "pytest",
]
"""What all of them import, which takes longer than what most of them do."""


def work_together(work: Callable[..., None], folder: Path, *args: Any, count: int = 2) -> None:
    """Run `work(rank, folder, *args)` in `count` new processes of one group; fails if one does."""
    start_together(one_of, (count, work, folder, *args), count)


def start_together(work: Callable[..., None], args: tuple[Any, ...], count: int) -> None:
    """Run `work(number, *args)` in `count` new processes; fails if one does.

    They are forks of a server that has imported torch and computed nothing: as fresh as a process
    of its own, without the seconds that each would take to import it again.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(work, args, nprocs=count, start_method="forkserver")


def one_of(rank: int, count: int, work: Callable[..., None], folder: Path, *args: Any) -> None:
    """One of the processes."""
    faulthandler.dump_traceback_later(300, exit=True)  # the parent waits for as long as it takes
    torch.set_num_threads(1)
    with group(rank, count, folder):
        # A call of its own: what `work` made, above all a DistributedDataParallel, is gone before
        # the group is. The other way round, the end of the wrapper ends the group's threads while
        # it holds the interpreter, and one that has yet to drop a tensor of Python's waits for it.
        work(rank, folder, *args)


@contextmanager
def group(rank: int, count: int, folder: Path) -> Iterator[None]:
    """The process group."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=count
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    """The process group of one rank, in the process of the tests; what uses it goes before it."""
    gc.freeze()  # so that the collection looks at what these tests make, not at all of torch
    with group(0, 1, folder):
        yield
        gc.collect()
