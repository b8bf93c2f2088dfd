"""Ranks that are to do the same say so to each other before any of them does it."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

__all__ = ["agree", "short"]


def agree(caller: str, options: Mapping[str, str], fault: str | None, group: Any) -> None:
    """Raise on every rank if one found a fault, or if options differ between ranks.

    Every rank of the group has to call it. One small exchange of objects.

    Args:
        options: what has to be the same everywhere, by name.
        fault: what is wrong on this rank, or None.
    Raises:
        ValueError: what is wrong, and on which rank.
    """
    found: list[Any] = [(dict(options), fault)]
    if dist.get_world_size(group) > 1:
        found = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, (dict(options), fault), group=group)
    if fault is not None:
        raise ValueError(f"{caller}: {fault}")
    for rank, (_, other) in enumerate(found):
        if other is not None:
            raise ValueError(f"{caller}: rank {rank} refused: {other}")
    first = found[0][0]
    for rank, (other, _) in enumerate(found):
        for name in first:
            if other.get(name) != first[name]:
                raise ValueError(
                    f"{caller}: {name} differs between ranks: {short(first[name])} on rank 0, "
                    f"{short(other.get(name))} on rank {rank}; pass the same on every rank"
                )


def short(text: str | None) -> str:
    """The start of a long text."""
    shown = str(text)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
