"""Random bits from a counter: a hash of (seed, index), the same in eager code and in any graph.

A generator hands out one number after another, so a kernel must wait for it, and torch's takes ten
times the time of a copy. A hash of the index is computed where it is used, in the same pass.
"""

import torch
from torch import Generator, Tensor

LANES = 32
"""Indices are laid out in rows of this many. `row * 32 ^ column` is the index, but Inductor does
not know, and reads the columns from a table of 32. A plain `arange` it builds number by number in
vector registers, which takes as long as all the rest (torch 2.13, AVX-512)."""

_MASK32, _MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def signed(pattern: int, bits: int) -> int:
    """The two's complement number of a bit pattern."""
    return pattern - (1 << bits) if pattern >> (bits - 1) else pattern


FIRST, SECOND = 0x7FEB352D, signed(0x846CA68B, 32)
"""The factors of the mixer."""


def draw_seed(device: torch.device, generator: Generator | None = None) -> Tensor:
    """A seed, 0-dim int64 on `device`, from the generator or else torch's global one."""
    return torch.randint(2**62, (), dtype=torch.int64, device=device, generator=generator)


def keys_of(seed: int | Tensor, device: torch.device) -> Tensor:
    """Two int32 keys of a 64-bit seed, shape (2,): the halves of SplitMix64's next number.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", variant 13.
    """
    if device.type == "cpu" and not torch.compiler.is_compiling() and type(seed) in (int, Tensor):
        return torch.tensor(key_numbers(int(seed)), dtype=torch.int32)
    if isinstance(seed, Tensor):
        z = seed.to(device=device, dtype=torch.int64)
    else:
        z = torch.full((), seed, dtype=torch.int64, device=device)
    z = z + signed(0x9E3779B97F4A7C15, 64)
    z = (z ^ _shift_logical(z, 30)) * signed(0xBF58476D1CE4E5B9, 64)
    z = (z ^ _shift_logical(z, 27)) * signed(0x94D049BB133111EB, 64)
    z = z ^ _shift_logical(z, 31)
    halves = torch.stack([z & _MASK32, _shift_logical(z, 32)])
    return ((halves ^ 2**31) - 2**31).to(torch.int32)  # as signed numbers, so that no cast wraps


def key_numbers(seed: int) -> tuple[int, int]:
    """The same in Python's integers: a dozen operations on tensors would cost more."""
    z = (seed + 0x9E3779B97F4A7C15) & _MASK64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK64
    z ^= z >> 31
    return signed(z & _MASK32, 32), signed(z >> 32, 32)


def random_int32(
    shape: torch.Size, keys: Tensor, start: int = 0, lanes: Tensor | None = None
) -> Tensor:
    """32 random bits for each index from `start` on, in row-major order; int32 of `shape`.

    `lanes` is `lane_numbers()` of the last axis, if a kernel is to read rather than build them.

    The mixer is lowbias32 (C. Wellons, "Prospecting for hash functions", 2018), a bijection, with
    one key before it and one in the middle. Indices count modulo 2**32.
    """
    h = _indices(shape, keys.device, start, lanes) ^ keys[0]
    h ^= (h >> 16) & 0xFFFF  # a shift of int32 repeats the sign, which would cancel itself
    h *= FIRST
    h ^= (h >> 15) & 0x1FFFF
    h += keys[1]
    h *= SECOND
    h ^= (h >> 16) & 0xFFFF
    return h


def lane_numbers(device: torch.device, width: int = LANES) -> Tensor:
    """0 to width - 1, int32."""
    return torch.arange(width, dtype=torch.int32, device=device)


def _indices(shape: torch.Size, device: torch.device, start: int, lanes: Tensor | None) -> Tensor:
    if len(shape) == 2 and shape[1] in (LANES // 2, LANES) and start == 0:
        rows = torch.arange(shape[0], dtype=torch.int32, device=device) * shape[1]
        return rows[:, None] ^ (lane_numbers(device, shape[1]) if lanes is None else lanes)
    first = signed(start & _MASK32, 32)
    index = torch.arange(shape.numel(), dtype=torch.int32, device=device)
    return (index.add_(first) if first else index).view(shape)


def _shift_logical(z: Tensor, count: int) -> Tensor:
    return (z >> count) & ((1 << (64 - count)) - 1)
