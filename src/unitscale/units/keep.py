"""What backward needs of a region, held in eight bits, and the region computed again from it.

    forward    y = f(x_1 .. x_n)            exact: nothing that comes out is rounded
    held       q(x_i)                       codes and their scales; numbers, masks, parameters as is
    backward   the derivative of f at q^-1(q(x_i))

The scale of each group is held in 8 bits where it is a power of two, and else in BF16, as COAT
holds it: 2^-9 of a value at most, where E4M3FN itself is off by up to 2^-4. Source: COAT (Xi et
al., ICLR 2025), section 5, and its code.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from unitscale.formats import Encoded
from unitscale.formats.scale_rule import power_of_two_code, power_of_two_value
from unitscale.gemm import first_order, in_backward
from unitscale.gemm.operand import Use, encode, pack, take
from unitscale.recipes import Current, PerTensor

__all__ = ["Codes", "again", "at_points", "codes", "pays", "plain", "point_like", "shared"]

Codes = tuple[Tensor, Tensor | None]
"""Data in few bits, and the scales of its groups."""


def shared(x: Tensor, text: str) -> Codes:
    """A tensor as several products take it: one copy in few bits, whose scale stays in float32."""
    with torch.no_grad():
        found = pack(encode(x.detach(), Use(text)), Use(text))
    return found.data, found.scale


def codes(x: Tensor, text: str) -> Codes:
    """A tensor as backward gets it, by an operand with a scale that is computed."""
    data, scale = shared(x, text)
    assert scale is not None
    return data, narrow(scale, text)


def narrow(scale: Tensor, text: str) -> Tensor:
    """Scales of groups in 8 or 16 bits; the one of a whole tensor stays as it is."""
    operand = Use(text).operand
    assert isinstance(operand.scale, Current)
    if isinstance(operand.granularity, PerTensor):
        return scale
    if operand.scale.power_of_two is None:
        return scale.to(torch.bfloat16)
    return power_of_two_code(scale)


def point(held: Codes, text: str, dtype: torch.dtype) -> Tensor:
    """The values of codes, in a dtype."""
    data, scale = held
    assert scale is not None
    wide = power_of_two_value(scale) if scale.dtype == torch.uint8 else scale.float()
    return take(Encoded(data, wide), Use(text), dtype)


def point_like(held: Codes, text: str, x: Tensor) -> Tensor:
    """The values of the codes of a tensor, in its dtype."""
    return point(held, text, x.dtype)


def plain(body: Callable[..., Any], *given: Any) -> Any:
    """An op at a point, where nothing is differentiated."""
    with torch.no_grad():
        return body(*given)


def pays(shape: Sequence[int], item_bytes: int, text: str) -> bool:
    """Whether codes and scales of a tensor take three quarters of its bytes at most.

    Those of groups along an axis of a few values do not.
    """
    operand = Use(text).operand
    if isinstance(operand.granularity, PerTensor):
        return True
    if not len(shape):  # there is no axis to form groups along
        return False
    assert isinstance(operand.scale, Current)
    along = int(shape[-1])
    scale_bytes = 2 if operand.scale.power_of_two is None else 1
    groups = operand.granularity.scale_shape((along,))[-1]
    return 4 * (along + scale_bytes * groups) <= 3 * along * item_bytes


def again(body: Callable[..., Tensor], text: str, held: Sequence[Codes | None], *given: Any) -> Any:
    """`body(*given)`, computed again in backward from what is held.

    Args:
        text: of the operand by which tensors are held.
        held: of each that is given its codes; None holds it as it is.
        given: tensors and numbers.
    """
    return Again.apply(body, text, tuple(held), *given)


class Again(torch.autograd.Function):
    """A function of exact values forward, its derivative at the held ones backward."""

    @staticmethod
    def forward(
        ctx: Any,
        body: Callable[..., Tensor],
        text: str,
        held: tuple[Codes | None, ...],
        *given: Any,
    ) -> Tensor:
        ctx.body, ctx.text = body, text
        ctx.dtypes = [x.dtype if isinstance(x, Tensor) else None for x in given]
        ctx.others = [None if isinstance(x, Tensor) else x for x in given]
        ctx.is_held = [part is not None for part in held]
        kept: list[Tensor | None] = []
        for part, x in zip(held, given, strict=True):
            kept += part if part is not None else (x if isinstance(x, Tensor) else None, None)
        ctx.save_for_backward(*kept)
        ctx.casting = Casting.now(given)
        return body(*given)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: a second time, a checkpoint has no more
        wanted = ctx.needs_input_grad[3:]
        points: list[Any] = []
        for index, dtype in enumerate(ctx.dtypes):
            data, scale = saved[2 * index : 2 * index + 2]
            if dtype is None:
                points.append(ctx.others[index])
                continue
            if ctx.is_held[index]:
                # A compiler would rather keep the scale as it is before it is narrowed.
                data = point((data, in_backward(scale, grad)), ctx.text, dtype)
            points.append(data.detach().requires_grad_(wanted[index]))
        with torch.enable_grad(), ctx.casting.restored():
            output = ctx.body(*points)
        asked = [x for x, is_wanted in zip(points, wanted, strict=True) if is_wanted]
        found = iter(torch.autograd.grad(output, asked, grad, allow_unused=True))
        return (None, None, None, *(next(found) if is_wanted else None for is_wanted in wanted))


class Casting:
    """What autocast does at a point of a forward pass, for a backward pass that computes it again.

    Args:
        kind: of the device. dtype: that of autocast; None where it is off.
    """

    def __init__(self, kind: str, dtype: torch.dtype | None) -> None:
        self.kind, self.dtype = kind, dtype

    @classmethod
    def now(cls, given: Sequence[Any]) -> "Casting":
        """As it is here, for the device of some tensors."""
        kind = next((x.device.type for x in given if isinstance(x, Tensor)), "cpu")
        is_on = torch.is_autocast_enabled(kind)
        return cls(kind, torch.get_autocast_dtype(kind) if is_on else None)

    def restored(self) -> AbstractContextManager[Any]:
        """A context in which it is so."""
        if self.dtype is None and not torch.is_autocast_enabled(self.kind):
            return nullcontext()
        return torch.autocast(
            self.kind, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False
        )


def at_points(run: Callable[..., Any], count: int, *given: Any) -> Any:
    """One op of a region in a measuring step: its value exact, its derivative at other points.

    Args:
        run: the op, of all its tensors and numbers by position.
        count: how many there are.
        given: these, and then the points at which the derivative is taken.
    """
    return AtPoints.apply(run, given[count:], *given[:count])


class AtPoints(torch.autograd.Function):
    """`Again` for one op, whose points are at hand."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], points: tuple[Any, ...], *given: Any
    ) -> Tensor:
        ctx.run, ctx.is_tensor = run, [isinstance(x, Tensor) for x in points]
        ctx.others = [None if isinstance(x, Tensor) else x for x in points]
        ctx.save_for_backward(*(x.detach() if isinstance(x, Tensor) else None for x in points))
        ctx.casting = Casting.now(given)
        return run(*given)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        points = [
            x.detach().requires_grad_(is_wanted) if is_tensor else other
            for x, is_tensor, other, is_wanted in zip(
                saved, ctx.is_tensor, ctx.others, wanted, strict=True
            )
        ]
        with torch.enable_grad(), ctx.casting.restored():
            output = ctx.run(*points)
        asked = [x for x, is_wanted in zip(points, wanted, strict=True) if is_wanted]
        found = iter(torch.autograd.grad(output, asked, grad, allow_unused=True))
        return (None, None, *(next(found) if is_wanted else None for is_wanted in wanted))
