"""Counts in words."""

__all__ = ["plural"]


def plural(count: int, noun: str) -> str:
    """`1 tensor`, `3 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
