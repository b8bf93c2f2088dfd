"""What a scale rule returns: the factor of each tensor of an operation, as plain numbers.

`output_scale` multiplies the output in the forward pass; `grad_<operand>_scale` multiplies the
gradient that reaches that operand. They are the ideal ones, before any constraint: with independent
unit normal inputs and output gradient, each makes its tensor have a scale of 1.
"""

from dataclasses import dataclass

__all__ = [
    "AttentionFactors",
    "BilinearFactors",
    "EinsumFactors",
    "EmbeddingFactors",
    "Factors",
    "GatedFactors",
    "LinearFactors",
    "LossFactors",
    "MatmulFactors",
    "NormFactors",
    "RecurrentFactors",
    "Residual",
    "count_scale",
]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """One input, one output."""

    output_scale: float
    grad_input_scale: float


@dataclass(frozen=True, kw_only=True)
class MatmulFactors:
    """Two operands that are both activations, or could be."""

    output_scale: float
    grad_left_scale: float
    grad_right_scale: float


@dataclass(frozen=True, kw_only=True)
class EinsumFactors:
    """Any number of operands."""

    output_scale: float
    grad_input_scales: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LinearFactors:
    """An input, a weight and a bias; parameters used once lie on cut-edges, so theirs are free."""

    output_scale: float
    grad_input_scale: float
    grad_weight_scale: float
    grad_bias_scale: float


@dataclass(frozen=True, kw_only=True)
class BilinearFactors:
    """Two inputs, a weight and a bias."""

    output_scale: float
    grad_left_scale: float
    grad_right_scale: float
    grad_weight_scale: float
    grad_bias_scale: float


@dataclass(frozen=True, kw_only=True)
class EmbeddingFactors:
    """A table of unit vectors, looked up."""

    output_scale: float
    grad_weight_scale: float


@dataclass(frozen=True, kw_only=True)
class GatedFactors:
    """`input * activation(gate)`."""

    output_scale: float
    grad_input_scale: float
    grad_gate_scale: float


@dataclass(frozen=True, kw_only=True)
class NormFactors:
    """A normalization with gain (`weight`) and bias."""

    output_scale: float
    grad_input_scale: float
    grad_weight_scale: float
    grad_bias_scale: float


@dataclass(frozen=True, kw_only=True)
class AttentionFactors:
    """Dot-product attention; `logit_scale` multiplies `q @ k.T` and is part of the function."""

    logit_scale: float
    output_scale: float
    grad_query_scale: float
    grad_key_scale: float
    grad_value_scale: float


@dataclass(frozen=True, kw_only=True)
class LossFactors:
    """A loss keeps its value; the edge to it is a cut-edge, so its gradient factor is free."""

    output_scale: float
    grad_input_scale: float


@dataclass(frozen=True, kw_only=True)
class RecurrentFactors:
    """A recurrent layer over a sequence.

    `matmul_scale` is both factors of the product of the weights with the joined input and state;
    `activation_scale` multiplies the state inside the loop (both passes) and `emit_scale` the
    sequence that leaves it (both passes); `grad_weight_scale` goes with weights and biases.
    """

    matmul_scale: float
    activation_scale: float
    emit_scale: float
    grad_weight_scale: float


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Weights of the two sides of a residual add, `skip**2 + branch**2 == 1`."""

    skip: float
    branch: float


def count_scale(count: float) -> float:
    """`count ** -0.5`: undoes the growth of a sum of `count` independent terms; 1 for no terms."""
    scale: float = max(count, 1) ** -0.5
    return scale
