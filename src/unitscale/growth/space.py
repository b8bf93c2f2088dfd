"""Which old index each new index of an axis copies.

Axes are of a few kinds, the spaces of a model: its residual stream, query heads, key and value
heads, the inner layer of its MLPs. All axes of one space grow alike.
"""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

__all__ = ["Space", "copied", "grouped", "padded"]


@dataclass(frozen=True, eq=False)
class Space:
    """How the indices of one kind of axis grow.

    Guarantees that every old index is copied at least once, the first `old` ones in order where
    heads are not regrouped.

    Attributes:
        old: how many indices there were.
        source: for each new index the old one that it copies, int64.
        is_padded: the new indices hold nothing that is read: each old one counts once.
    """

    old: int
    source: Tensor
    is_padded: bool = False

    @property
    def new(self) -> int:
        """How many indices there are afterwards."""
        return len(self.source)

    @property
    def grows(self) -> bool:
        """Whether anything changes."""
        return self.new != self.old

    @cached_property
    def counts(self) -> Tensor:
        """For each new index how many share its content, itself included; float64."""
        if self.is_padded:
            return torch.ones(self.new, dtype=torch.float64)
        return torch.bincount(self.source, minlength=self.old)[self.source].double()

    @cached_property
    def is_first(self) -> Tensor:
        """For each new index whether it is the first to copy its source; bool."""
        first = torch.full((self.old,), self.new)
        index = torch.arange(self.new)
        first.scatter_reduce_(0, self.source, index, "amin")
        return first[self.source] == index

    @property
    def copies(self) -> float:
        """How many new indices there are for an old one, on average; 1 where they are padding."""
        return 1.0 if self.is_padded else self.new / self.old

    @property
    def shrink(self) -> float:
        """What a norm over a padded axis takes for the factor of its gain: sqrt(old / new)."""
        return sqrt(self.old / self.new) if self.is_padded else 1.0


def copied(old: int, new: int, size: int = 1) -> Space:
    """Indices in blocks of `size`, copied in turn: 0, 1, 2, 0, 1, ..."""
    return Space(old * size, blocks(torch.arange(new) % old, size))


def padded(old: int, new: int) -> Space:
    """A residual stream: copied if `new` is a multiple of `old`, and padded otherwise.

    An uneven copy would change the mean and the variance that norms see.
    """
    return Space(old, torch.arange(new) % old, is_padded=new % old != 0)


def grouped(old: tuple[int, int], new: tuple[int, int], size: int) -> Space:
    """Query heads in groups, each copied with its group.

    Args:
        old, new: the number of groups (key and value heads), and of query heads in each.
        size: of a head.
    """
    group, member = torch.arange(new[0]) % old[0], torch.arange(new[1]) % old[1]
    heads = (group[:, None] * old[1] + member[None, :]).flatten()
    return Space(old[0] * old[1] * size, blocks(heads, size))


def blocks(source: Tensor, size: int) -> Tensor:
    """The indices of elements from those of blocks."""
    return (source[:, None] * size + torch.arange(size)[None, :]).flatten()
