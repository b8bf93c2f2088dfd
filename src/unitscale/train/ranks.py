"""What the ranks of a run say to each other: numbers, what rank 0 found, and that one is gone.

Nothing here does anything in a run of one process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from unitscale.graph.engine import timeout_of
from unitscale.train.spread import RankError, Spread

__all__ = ["RankError", "ending_together", "from_lead", "gathered", "held_by_lead"]

Found = TypeVar("Found")

SIGNS = (
    "gloo",
    "nccl",
    "torch.distributed says",
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "wait timeout",
    "processgroup",
    "process group",
)
"""What errors of collectives say, in small letters; most of them have no class of their own."""


def gathered(spread: Spread, numbers: Sequence[float]) -> list[list[float]]:
    """The numbers of every rank, in the order of ranks; all ranks get the same bits."""
    if spread.is_alone:
        return [list(numbers)]
    own = torch.tensor(numbers, dtype=torch.float64)
    found = [torch.empty_like(own) for _ in range(spread.ranks)]
    dist.all_gather(found, own)
    return [one.tolist() for one in found]


def from_lead(spread: Spread, make: Callable[[], Found]) -> Found:
    """What `make` returns on rank 0, or the error that it raises there, on every rank."""
    if spread.is_alone:
        return make()
    outcome: list[Any] = [None]
    found: Found
    if spread.leads:
        try:
            outcome = [(make(), None)]
        except Exception as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0)
    found, raised = outcome[0]
    if raised is not None:
        raise raised
    return found


@contextmanager
def held_by_lead(spread: Spread, context: AbstractContextManager[Any]) -> Iterator[None]:
    """A context that rank 0 alone enters; if it cannot, every rank raises its error."""
    with ExitStack() as held:

        def enter() -> None:
            held.enter_context(context)

        with ending_together(spread):
            from_lead(spread, enter)
        yield


@contextmanager
def ending_together(spread: Spread) -> Iterator[None]:
    """Turn what a collective raises when another rank is gone into one line.

    Raises:
        RankError: see above.
    """
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        if spread.is_alone or isinstance(error, RankError) or not is_of_collective(error):
            raise
        raise RankError(gone(spread)) from error


def is_of_collective(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is of torch.distributed."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, dist.DistError) or any(sign in text for sign in SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def gone(spread: Spread) -> str:
    """The line of a rank that is left alone."""
    limit = timeout_of(dist.group.WORLD) if dist.is_initialized() else None
    within = f" within {limit.total_seconds():.0f} s" if limit else ""
    return (
        f"another of the {spread.ranks} ranks has ended or did not answer{within}, so this one "
        "ends too; its own line says why, and --resume continues from the last checkpoint"
    )
