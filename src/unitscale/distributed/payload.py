"""Gradients to bytes and back: a flat buffer of several parameters, each at a scale of its own.

An example of two parameters of 3 and 2 elements on 2 ranks, with scales 1/4 and 8:

    gradient    0.5  -1   nan | 16  4000        float32, bfloat16, float16 or float64
    * 1/scale   2    -4   nan |  2   500        float32
    payload     2    -4   NaN |  2   448   0    E4M3FN, one byte each, filled up to shards of 3;
                                                one element saturated
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unitscale.formats import FloatFormat, round_to, torch_dtype, widen

__all__ = ["Layout", "Lost", "decode", "encode"]

PIECE = 2**17
"""Elements that are worked on at once on a CPU, so that they stay in the cache."""

Seed = Callable[[int], int]
"""The seed of the stochastic rounding of a piece, by its number."""


@dataclass(frozen=True)
class Layout:
    """Which parameter owns which part of a bucket, and which rank which shard.

    Guarantees `padded == ranks * shard >= sum(numels)`, with `shard` as small as it can be.
    """

    numels: tuple[int, ...]
    ranks: int

    @property
    def total(self) -> int:
        """Elements of a bucket."""
        return sum(self.numels)

    @property
    def shard(self) -> int:
        """Bytes of a payload that one rank adds up."""
        return -(-self.total // self.ranks)

    @property
    def padded(self) -> int:
        """Bytes of a payload."""
        return self.shard * self.ranks

    def pieces(self, size: int) -> Iterator[tuple[int, int, list[int], list[int]]]:
        """Start and end of each piece, the parameters in it, and how many elements each has."""
        # One walk over both: `owner` ends at `edge`, and a piece may hold many owners.
        owner, edge = 0, self.numels[0] if self.numels else 0
        total = self.total
        for start in range(0, total, size):
            stop = min(start + size, total)
            owners, counts, position = [], [], start
            while position < stop:
                while edge <= position:
                    owner += 1
                    edge += self.numels[owner]
                end = min(edge, stop)
                owners.append(owner)
                counts.append(end - position)
                position = end
            yield start, stop, owners, counts


@dataclass(frozen=True)
class Lost:
    """What a cast to 8 bits did not keep.

    saturated: int32, one for each parameter: elements beyond the largest value of the format.
    largest: the same of those whose payload has the largest magnitude.
    flushed: int64, 0-dim: elements other than zero whose payload is zero.
    nonfinite: int64, 0-dim: NaN and infinities.
    """

    saturated: Tensor
    largest: Tensor
    flushed: Tensor
    nonfinite: Tensor


def encode(
    buffer: Tensor,
    layout: Layout,
    inv_scales: Tensor,
    fmt: FloatFormat,
    seed: Seed | None = None,
) -> tuple[Tensor, Lost]:
    """The payload of a bucket, uint8 of `layout.padded` elements, and what it lost.

    NaN and infinities become NaN: an infinity that saturated would hide an overflow. What lies
    beyond the largest value saturates and is counted. The filling is zero.

    Args:
        buffer: 1-dim, `layout.total` elements.
        inv_scales: float32, one for each parameter.
        seed: rounds stochastically; None to nearest even.
    """
    device = buffer.device
    payload = torch.zeros(layout.padded, dtype=torch.uint8, device=device)
    saturated = torch.zeros(len(layout.numels), dtype=torch.int32, device=device)
    largest = torch.zeros_like(saturated)
    flushed = torch.zeros((), dtype=torch.int64, device=device)
    nonfinite = torch.zeros_like(flushed)
    for number, (start, stop, owners, counts) in enumerate(layout.pieces(piece_size(buffer))):
        x = buffer[start:stop].float() * spread(inv_scales, owners, counts)
        magnitude = x.abs()
        # On a CPU one maximum tells of most pieces that nothing in them reaches the end.
        is_inside = device.type == "cpu" and bool(magnitude.max() < fmt.max / 2)
        if not is_inside:
            # A finite gradient may pass float32 at its scale; that is saturation, no infinity.
            is_finite = buffer[start:stop].isfinite()
            nonfinite += (~is_finite).sum()
            add_counts(saturated, is_finite & (magnitude > fmt.max), owners, counts)
            x = torch.where(is_finite, x.clamp(-fmt.max, fmt.max), torch.nan)
        y = rounded(x, fmt, seed, number)
        payload[start:stop] = y.view(torch.uint8)
        if not is_inside:
            add_counts(largest, y.float().abs() == fmt.max, owners, counts)
        # Both zeros of a format have no bits but the sign; the FNUZ forms have one zero.
        is_zero = (y.view(torch.uint8) & (0x7F if fmt.has_negative_zero else 0xFF)) == 0
        flushed += torch.count_nonzero(x) - (y.numel() - is_zero.sum())
    return payload, Lost(saturated, largest, flushed, nonfinite)


def decode(
    payload: Tensor, layout: Layout, scales: Tensor, fmt: FloatFormat, out: Tensor
) -> Tensor:
    """Write the values of a payload to `out`, which is returned.

    The product is taken in float32. A value beyond `out.dtype` becomes its largest one: the mean of
    finite gradients is finite. NaN stays.

    Args:
        payload: uint8, the bytes of at least `layout.total` elements; the rest is filling.
        scales: float32, one for each parameter.
        out: 1-dim, `layout.total` elements.
    """
    limit = min(torch.finfo(out.dtype).max, torch.finfo(torch.float32).max)
    elements = payload.view(stored(fmt))
    for start, stop, owners, counts in layout.pieces(piece_size(out)):
        x = widen(elements[start:stop], torch.float32) * spread(scales, owners, counts)
        out[start:stop] = x.clamp(-limit, limit)
    return out


def rounded(x: Tensor, fmt: FloatFormat, seed: Seed | None, piece: int) -> Tensor:
    """Float32 values, within the range of the format or NaN, in its torch dtype."""
    if seed is None:
        return round_to(x, fmt).to(stored(fmt))
    return round_to(x, fmt, "stochastic", seed=seed(piece)).to(stored(fmt))


def values(payload: Tensor, fmt: FloatFormat) -> Tensor:
    """The float32 value of each byte."""
    return widen(payload.view(stored(fmt)), torch.float32)


def stored(fmt: FloatFormat) -> torch.dtype:
    """The torch dtype of a format on the wire."""
    dtype = torch_dtype(fmt)
    assert dtype is not None  # checked before anything is registered
    return dtype


def piece_size(buffer: Tensor) -> int:
    """A device other than a CPU takes everything at once: each piece is a launch."""
    return PIECE if buffer.device.type == "cpu" else max(1, buffer.numel())


def spread(per_parameter: Tensor, owners: list[int], counts: list[int]) -> Tensor:
    """One number for each element of a piece, or one for all of them."""
    if len(owners) == 1:
        return per_parameter[owners[0]]
    here = per_parameter[owners[0] : owners[-1] + 1]
    return here.repeat_interleave(lengths(here, owners, counts), output_size=sum(counts))


def add_counts(total: Tensor, mask: Tensor, owners: list[int], counts: list[int]) -> None:
    """Add to each parameter's number the elements of a piece in which `mask` is set."""
    if len(owners) == 1:
        total[owners[0]] += mask.sum(dtype=total.dtype)
        return
    here = total[owners[0] : owners[-1] + 1]
    index = torch.arange(len(here), device=total.device)
    index = index.repeat_interleave(lengths(here, owners, counts), output_size=sum(counts))
    here.index_add_(0, index, mask.to(total.dtype))


def lengths(here: Tensor, owners: list[int], counts: list[int]) -> Tensor:
    """Elements of each parameter from the first owner to the last; empty ones own none."""
    found = dict(zip(owners, counts, strict=True))
    every = [found.get(owner, 0) for owner in range(owners[0], owners[-1] + 1)]
    return torch.tensor(every, device=here.device)
