"""Rounding compiled to one loop that reads each element once and writes it once.

A kernel is compiled on the first call that asks for it, for its format, mode and dtypes; it serves
every size. In a fresh process that takes 1 to 2 seconds if it was compiled on this machine before,
else about 10 for the first (the compiler itself starts) and 1 for each further one.
"""

import functools
import itertools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from unitscale.formats.hashing import LANES, lane_numbers
from unitscale.formats.kernel import Bits, Law, codes_of

SMALLEST = 2**16
"""Elements below which calling a compiled kernel costs more than the rounding."""

Given = Tensor | None

_numbers = itertools.count()


def serves(x: Tensor, out: Tensor | None) -> bool:
    """Whether a kernel fits: large contiguous tensors outside of graphs, out without history."""
    return (
        x.numel() >= SMALLEST
        and x.is_contiguous()
        and (out is None or (out.is_contiguous() and not out.requires_grad))
    )


def apply(
    law: Law, x: Tensor, keys: Tensor | None, inv_scale: Tensor | None, out: Tensor, encode: bool
) -> Tensor:
    """Write the rounded `x`, or its codes, to `out`; both contiguous; they may be the same."""
    whole = x.numel() // LANES * LANES
    lanes = None if keys is None else lane_numbers(x.device)
    in_place = x.data_ptr() == out.data_ptr()
    flat, flat_out = x.view(-1), out.view(-1)
    rows = flat[:whole].view(-1, LANES)
    torch._dynamo.mark_dynamic(rows, 0)
    if in_place:
        _kernel(law, encode, True)(rows, keys, lanes, inv_scale)
    else:
        rows_out = flat_out[:whole].view(-1, LANES)
        torch._dynamo.mark_dynamic(rows_out, 0)
        _kernel(law, encode, False)(rows, keys, lanes, inv_scale, rows_out)
    if whole < x.numel():
        y = law.rounded(flat[whole:], Bits(keys, start=whole), inv_scale)
        flat_out[whole:].copy_(codes_of(y.float(), law.fmt) if encode else y)
    return out


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled with a limit of recompilations of its own.

    Dynamo counts per code object, and closures made in one place share theirs.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    own = FunctionType(
        code,
        function.__globals__,
        code.co_name,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(own, fullgraph=True)


@functools.cache
def _kernel(law: Law, encode: bool, in_place: bool) -> Callable[..., Any]:
    def rounded(x: Tensor, keys: Given, lanes: Given, inv_scale: Given) -> Tensor:
        y = law.rounded(x, Bits(keys, lanes=lanes), inv_scale)
        return codes_of(y.float(), law.fmt) if encode else y

    def over_itself(x: Tensor, *given: Given) -> None:
        x.copy_(rounded(x, *given))

    def into(x: Tensor, keys: Given, lanes: Given, inv_scale: Given, out: Tensor) -> None:
        out.copy_(rounded(x, keys, lanes, inv_scale))

    return compiled(over_itself if in_place else into)
