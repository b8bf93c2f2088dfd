"""Stochastic rounding in eager code on a CPU, where time goes into passes over memory.

The numbers are those of `kernel` and `hashing`, bit for bit. Here each operation writes into one of
a few buffers that stay in the cache, and a piece without NaN and without values past the largest
(which a maximum tells) is spared what those need. Half the time of the formulas as they are.
"""

import functools

import torch
from torch import Tensor

from unitscale.formats.catalogue import FP32
from unitscale.formats.dtypes import CARRIERS
from unitscale.formats.hashing import FIRST, SECOND, signed
from unitscale.formats.kernel import EXPONENT, MAGNITUDE, SIGN, Bits, Law, float32_bits, is_plain

ROW = 512
"""Indices are the sum of a multiple of this and a number below it."""

SMALL = 2**17
"""Elements of a piece for each thread. Measured best: five buffers of it are 2.6 MB."""


def serves(law: Law, x: Tensor, bits: Bits) -> bool:
    """Whether this file does what `law` says of x: a plain format, bits from a seed, on a CPU."""
    return (
        law.rounding == "stochastic"
        and bits.keys is not None
        and x.device.type == "cpu"
        and x.is_contiguous()
        and is_plain(law.fmt, x.dtype)
        and law.fmt.has_negative_zero
    )


def apply(law: Law, x: Tensor, bits: Bits, scale: Tensor | None, out: Tensor) -> Tensor:
    """Write the rounded `x` to `out`, both contiguous; they may be the same."""
    assert bits.keys is not None
    keys = bits.keys.tolist()
    size = min(SMALL * torch.get_num_threads(), max(x.numel(), 1))
    buffers = torch.empty(4, size, dtype=torch.int32).unbind()
    flat, flat_out = x.view(-1), out.view(-1)
    for start in range(0, x.numel(), size):
        part, part_out = flat[start : start + size], flat_out[start : start + size]
        work = part.float()
        if scale is not None:
            work = work * scale
        used = tuple(buffer[: len(part)] for buffer in buffers)
        if not rounded_into(law, work, keys, start, used, part_out):
            part_out.copy_(law.rounded(part, Bits(bits.keys, start=start), scale))
    return out


@functools.cache
def number(value: int) -> Tensor:
    """An integer as a tensor: torch would make one at every operation, in as much time again."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.int32)


@functools.cache
def constants(law: Law) -> tuple[int, Tensor, Tensor, Tensor]:
    """Bits of the largest value and of the smallest normal; masks of what is drawn and kept."""
    limit = float32_bits(law.fmt.max_within(CARRIERS[law.dtype]))
    drop = FP32.mantissa_bits - law.fmt.mantissa_bits
    smallest = float32_bits(law.fmt.min_normal)
    return limit, number(smallest), number((1 << drop) - 1), number(-(1 << drop))


def rounded_into(
    law: Law, work: Tensor, keys: list[int], start: int, buffers: tuple[Tensor, ...], out: Tensor
) -> bool:
    """Round one float32 piece into `out`.

    False, and nothing written, if it holds NaN, or values past the largest that do not saturate.
    """
    magnitude, random, first, second = buffers
    limit, smallest, drawn, kept = constants(law)
    pattern = work.view(torch.int32)
    torch.bitwise_and(pattern, number(MAGNITUDE), out=magnitude)
    top = int(magnitude.max())
    if top > EXPONENT or (top > limit and not law.saturate):
        return False
    if top > limit:
        magnitude.clamp_(max=limit)
    hashed(keys, start, random, first)
    random.bitwise_and_(drawn)
    # As `magnitude_stochastic`, with the offset of the subnormals in `first`.
    torch.sub(magnitude, smallest, out=first)
    first.bitwise_right_shift_(number(31)).bitwise_and_(smallest)
    offset, y = first.view(torch.float32), magnitude.view(torch.float32)
    y += offset
    magnitude += random
    magnitude.bitwise_and_(kept)
    y -= offset
    torch.bitwise_and(pattern, number(SIGN), out=second)
    if out.dtype == torch.float32:
        torch.bitwise_or(magnitude, second, out=out.view(torch.int32))
    else:
        magnitude.bitwise_or_(second)
        out.copy_(y)
    return True


def hashed(keys: list[int], start: int, h: Tensor, scratch: Tensor) -> None:
    """`hashing.random_int32` of the indices from `start` on, written to `h`."""
    count = len(h)
    whole = count // ROW * ROW
    # The low bits of a multiple of ROW are 0, so the key may be mixed in before they are.
    first = start // ROW
    rows = torch.arange(first * ROW, (first + whole // ROW) * ROW, ROW)
    torch.bitwise_xor(
        rows.to(torch.int32).bitwise_xor_(keys[0])[:, None], lanes(), out=h[:whole].view(-1, ROW)
    )
    if whole < count:
        rest = torch.arange(start + whole, start + count).to(torch.int32)
        torch.bitwise_xor(rest, keys[0], out=h[whole:])
    mix(h, 16, scratch)
    h.mul_(number(FIRST))
    mix(h, 15, scratch)
    # (h + key) * SECOND in one pass
    added = torch.tensor(signed(keys[1] * SECOND & 0xFFFFFFFF, 32), dtype=torch.int32)
    torch.add(added, h, alpha=SECOND, out=h)
    mix(h, 16, scratch)


@functools.cache
def lanes() -> Tensor:
    """0 to ROW - 1."""
    with torch.inference_mode(False):
        return torch.arange(ROW, dtype=torch.int32)


def mix(h: Tensor, shift: int, scratch: Tensor) -> None:
    """`h ^= h >> shift`, the shift a logical one."""
    torch.bitwise_right_shift(h, number(shift), out=scratch)
    h.bitwise_xor_(scratch.bitwise_and_(number((1 << (32 - shift)) - 1)))
