"""Which rank owns which tensor, and what comes of it.

Source: arXiv 2310.18313 (FP8-LM), section 3.3; MS-AMP 0.4.0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PartitionReport", "partition"]


def partition(numels: Sequence[int], ranks: int) -> list[int]:
    """The owner of each tensor: greedy, the largest first, to the rank with the fewest elements.

    No rank has more than the mean plus the largest tensor.

    Args:
        numels: elements of each tensor. Of two that are equal, that with the lower index modulo
            `ranks` comes first, as in MS-AMP.
    Raises:
        ValueError: `ranks` is no positive int.
    """
    if type(ranks) is not int or ranks < 1:
        raise ValueError(f"partition: ranks is {ranks!r}; expected an int of 1 or more")
    loads, owners = [0] * ranks, [0] * len(numels)
    for index in sorted(range(len(numels)), key=lambda i: (-numels[i], i % ranks)):
        owner = loads.index(min(loads))
        owners[index] = owner
        loads[owner] += numels[index]
    return owners


@dataclass(frozen=True, kw_only=True)
class PartitionReport:
    """What this rank owns and has sent.

    loads: elements that each rank owns.
    steps: after which weights were exchanged.
    bytes_sent: by this rank as an owner, to one other rank.
    """

    rank: int
    loads: tuple[int, ...]
    parameters: int
    steps: int
    bytes_sent: int

    @property
    def imbalance(self) -> float:
        """The largest load over the mean; 1 is perfect."""
        return max(self.loads) * len(self.loads) / max(1, sum(self.loads))

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {len(self.loads)} has the states of {self.parameters} tensors, "
            f"{self.loads[self.rank]:,} of {sum(self.loads):,} elements (largest load "
            f"{self.imbalance:.2f} of the mean); {self.bytes_sent:,} bytes sent in "
            f"{self.steps} steps"
        )
