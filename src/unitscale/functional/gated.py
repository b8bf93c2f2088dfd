"""Gated units `input * f(gate)`, the activation of a GLU-type feed-forward block.

For independent standard normal `input` and `gate`, output and gradient of `input` have the scale
`rms(f)`, the gradient of `gate` has `rms(f')`. Both are projections of the same tensor, so neither
edge is a cut-edge and `constraint` ties all three.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import axis_size, check_floating, check_mult, shape
from unitscale.scaling import scale_bwd, scaled
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import gated_factors


def gate_with(
    op: str,
    name: str,
    function: Callable[..., Tensor],
    input: Tensor,
    gate: Tensor,
    mult: float,
    constraint: str | None,
    **params: str,
) -> Tensor:
    """`scaled(input * f(mult * gate))`, with what the gate's gradient needs beyond the input's."""
    check_floating(op, input=input, gate=gate)
    check_mult(op, mult=mult)
    if input.shape != gate.shape:
        raise ValueError(
            f"{op}: input has shape {shape(input)} and gate {shape(gate)}, expected equal shapes."
        )
    factors = gated_factors(name, mult=mult, **params)
    output_scale, grad_input_scale, grad_gate_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_input_scale, factors.grad_gate_scale
    )
    gate = scale_bwd(gate, grad_gate_scale / grad_input_scale)
    output = input * function(gate if mult == 1.0 else gate * mult, **params)
    return scaled(output, output_scale, grad_input_scale)


def glu(
    input: Tensor,
    dim: int = -1,
    *,
    mult: float = 1.0,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`a * sigmoid(b)` for the halves a and b of `input` along `dim`, at unit scale."""
    check_floating("glu", input=input)
    if axis_size(input, dim) % 2:
        raise ValueError(
            f"glu: input of shape {shape(input)} has an odd size in axis {dim}, "
            "expected an even one: it is cut into value and gate."
        )
    value, gate = input.chunk(2, dim)
    return gate_with("glu", "sigmoid", torch.sigmoid, value, gate, mult, constraint)


def silu_glu(
    input: Tensor,
    gate: Tensor,
    *,
    mult: float = 1.0,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`input * silu(gate)` (SwiGLU), at unit scale."""
    return gate_with("silu_glu", "silu", F.silu, input, gate, mult, constraint)


def gelu_glu(
    input: Tensor,
    gate: Tensor,
    approximate: str = "none",
    *,
    mult: float = 1.0,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`input * gelu(gate)` (GEGLU), at unit scale."""
    return gate_with(
        "gelu_glu", "gelu", F.gelu, input, gate, mult, constraint, approximate=approximate
    )


def relu_glu(
    input: Tensor,
    gate: Tensor,
    *,
    mult: float = 1.0,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`input * relu(gate)` (ReGLU), at unit scale."""
    return gate_with("relu_glu", "relu", F.relu, input, gate, mult, constraint)


def mish_glu(
    input: Tensor,
    gate: Tensor,
    *,
    mult: float = 1.0,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`input * mish(gate)`, at unit scale."""
    return gate_with("mish_glu", "mish", F.mish, input, gate, mult, constraint)
