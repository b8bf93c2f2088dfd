"""`scaled`: the one autograd primitive of the library.

Every unit-scaled operation, and every rewritten graph, is ordinary torch operations and this one:
forward it multiplies by `fwd`, and its derivative is declared to be `bwd`. Both are Python numbers,
so no tensor is allocated per factor and no factor is rounded to the dtype of the data.

Dynamo shows a call as one `call_function` node whose target is `scaled` itself, so that a graph
rewrite sees the factors and may move them; AOTAutograd and Inductor trace through it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.overrides import handle_torch_function, has_torch_function_unary

from unitscale.scaling.factors.activation import named_moments
from unitscale.scaling.factors.einsum import einsum_terms
from unitscale.scaling.maximum import maximum_moments
from unitscale.scaling.recurrence import stationary_mean_square
from unitscale.scaling.softmax import log_sum_law, softmax_law

__all__ = ["scale_bwd", "scale_fwd", "scaled"]


class Scaled(torch.autograd.Function):
    """Value `fwd * x`, derivative `bwd`: reverse mode, forward mode, and differentiated again."""

    @staticmethod
    def forward(x: Tensor, fwd: float, bwd: float, may_alias: bool) -> Tensor:
        return x.view_as(x) if may_alias else x * fwd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.bwd = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return (grad if is_one(ctx.bwd) else grad * ctx.bwd), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return tangent * ctx.bwd

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *factors: Any) -> Any:
        return Scaled.apply(x, *factors), in_dims[0]


# `Function.apply` binds its arguments to a signature at every call, which takes several times as
# long as the multiplication; only the transforms of torch.func need more than its C++ part.
apply_directly = super(torch.autograd.Function, Scaled).apply
transforms_are_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def scaled(x: Tensor, fwd: float = 1.0, bwd: float = 1.0) -> Tensor:
    """Multiply `x` by `fwd` in the forward pass and its gradient by `bwd` in the backward pass.

    Guarantees `y = fwd * x` and `x.grad = bwd * y.grad` (not `fwd * bwd * y.grad`).
    The derivative is `bwd` wherever one is taken: a Jacobian-vector product multiplies by `bwd`
    too, and differentiating twice gives `bwd**2`: the Hessian of `L(scaled(x))` comes out as
    `bwd**2 * L''(fwd * x)`.
    With both factors 1 it returns `x` itself; with `fwd` 1 the result shares the memory of `x`.

    Each product is rounded once, to the dtype of the data; bfloat16 and float16 are multiplied in
    float32 by the unrounded factor. NaN, Inf and -0 go through as in any multiplication, and a
    sparse gradient stays sparse.

    Args:
        x: floating-point or complex tensor of any shape, layout and device.
        fwd: finite Python number (a symbolic one while a graph is traced with dynamic shapes).
        bwd: likewise.
    Raises:
        TypeError: x is not floating-point, or a factor is not a Python number.
        ValueError: a factor is NaN or infinite.
    Source: Blake, Orr, Luschi 2023, "Unit Scaling: Out-of-the-Box Low-Precision Training",
        the scaled operation. The double-backward and forward-mode rules are ours.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(scaled, (x,), x, fwd, bwd)
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(
            f"scaled: x has dtype {x.dtype}, expected a floating-point dtype; "
            "an integer tensor has no gradient: convert it first, for example with x.float()."
        )
    fwd = check_factor("fwd", fwd)
    bwd = check_factor("bwd", bwd)
    may_alias = is_one(fwd)
    if may_alias:
        if is_one(bwd):
            return x
        # Forward-mode AD wants a view's tangent to be a view too, which a multiplied one is not.
        may_alias = unpack_dual(x).tangent is None
    apply = Scaled.apply if transforms_are_active() else apply_directly
    return apply(x, fwd, bwd, may_alias)


def scale_fwd(x: Tensor, fwd: float) -> Tensor:
    """Multiply `x` by `fwd` and leave its gradient as it is: `scaled(x, fwd=fwd)`."""
    return scaled(x, fwd, 1.0)


def scale_bwd(x: Tensor, bwd: float) -> Tensor:
    """Leave `x` as it is and multiply its gradient by `bwd`: `scaled(x, bwd=bwd)`."""
    return scaled(x, 1.0, bwd)


def check_factor(name: str, factor: float) -> float:
    """The factor as a float, a symbolic number untouched; anything else is refused."""
    if isinstance(factor, int | float):
        if not math.isfinite(factor):
            raise ValueError(f"scaled: {name} is {factor}, expected a finite number.")
        return float(factor)
    if isinstance(factor, torch.SymFloat | torch.SymInt):
        return factor
    raise TypeError(
        f"scaled: {name} is {factor!r} ({type(factor).__name__}), expected a Python number; "
        "a factor is a constant of the graph: pass float(factor), or multiply by the tensor."
    )


def is_one(factor: float) -> bool:
    """Whether the factor is 1; a symbolic one is not asked, since the answer would be a guard."""
    return isinstance(factor, float) and factor == 1.0


torch.compiler.allow_in_graph(scaled)

# Quadrature is numpy over Python numbers: Dynamo runs it and keeps the result as a constant.
for rule in (
    named_moments,
    einsum_terms,
    softmax_law,
    log_sum_law,
    maximum_moments,
    stationary_mean_square,
):
    torch.compiler.assume_constant_result(rule)
