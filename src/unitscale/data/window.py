"""Windows of text: random ones for training, fixed ones for validation.

A training batch is a pure function of (seed, step). There is no reader state to save, so a resumed
run sees exactly the batches that an uninterrupted one would have seen.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unitscale.data.corpus import Split


def sample_windows(
    split: Split, *, seed: int, step: int, batch_size: int, length: int
) -> NDArray[np.uint8]:
    """`batch_size` windows drawn uniformly, with replacement; shape (batch_size, length).

    Only the raw stream of a counter-based generator is used: unlike the distributions built on it,
    numpy promises that it never changes between versions.
    """
    key = np.array([seed, step], dtype=np.uint64)
    draws = np.random.Philox(key=key).random_raw(batch_size)
    return read_windows(split, [int(draw) % (len(split) - length + 1) for draw in draws], length)


def fixed_windows(split: Split, *, count: int, length: int) -> NDArray[np.uint8]:
    """`count` windows evenly spaced from the first byte to the last; shape (count, length)."""
    return next(fixed_batches(split, count=count, length=length, batch_size=count))


def fixed_batches(
    split: Split, *, count: int, length: int, batch_size: int
) -> Iterator[NDArray[np.uint8]]:
    """The same windows, at most `batch_size` at a time, so that any number of them fits."""
    last = len(split) - length
    for first in range(0, count, batch_size):
        indices = range(first, min(first + batch_size, count))
        yield read_windows(split, [last * i // max(count - 1, 1) for i in indices], length)


def read_windows(split: Split, starts: list[int], length: int) -> NDArray[np.uint8]:
    """The windows that begin at `starts`; shape (len(starts), length)."""
    text = b"".join(split.read(start, length) for start in starts)
    return np.frombuffer(text, dtype=np.uint8).reshape(len(starts), length)
