"""How the ideal factors of one operation are tied into a single one.

An operation has an ideal factor for its output and one for the gradient of each input. Using them
as they are is right on a cut-edge (an edge whose removal disconnects the graph: weights, the chain
after the last residual add). On every other edge the backward factor must equal the forward one,
or the contributions that meet behind it are added with the wrong relative weight and the sum is no
gradient of anything. A constraint chooses the common value.

Source: Blake, Orr, Luschi 2023, constraint-scaled computational graphs (`gmean` is the paper's
choice); `to_output_scale` is the choice of u-muP (Blake et al. 2024). The authors' demo has two
more: of a linear layer m -> n, "both_arithmetic" `((m + n) / 2)^-1/2`, which is Glorot's and here
`fan_amean`, and "both_min" `max(m, n)^-1/2`, here `min`.
"""

from collections.abc import Callable
from difflib import get_close_matches

__all__ = [
    "CONSTRAINTS",
    "amean",
    "apply_constraint",
    "fan_amean",
    "gmean",
    "hmean",
    "smallest",
    "to_grad_input_scale",
    "to_left_grad_scale",
    "to_output_scale",
    "to_right_grad_scale",
]


def gmean(*scales: float) -> float:
    """Geometric mean: spreads the mismatch evenly; a projection up and back restores the scale."""
    product = 1.0
    for scale in scales:
        product = product * scale
    return float(product ** (1 / len(scales)))


def hmean(*scales: float) -> float:
    """Harmonic mean: nearest to the smallest factor."""
    return len(scales) / sum(1 / scale for scale in scales)


def amean(*scales: float) -> float:
    """Arithmetic mean: nearest to the largest factor."""
    return sum(scales) / len(scales)


def fan_amean(*scales: float) -> float:
    """`(mean of scale^-2)^-1/2`: the factor of the arithmetic mean of the fans, as Glorot's."""
    return float((sum(scale**-2 for scale in scales) / len(scales)) ** -0.5)


def smallest(*scales: float) -> float:
    """The smallest factor: no tensor is larger than unit, and one is at unit scale."""
    result = scales[0]
    for scale in scales[1:]:
        result = min(result, scale)
    return result


def to_output_scale(output_scale: float, *grad_scales: float) -> float:
    """Keep the output at unit scale; the gradients take what mismatch there is."""
    return output_scale


def to_grad_input_scale(output_scale: float, grad_input_scale: float) -> float:
    """Keep the gradient of the only constrained input at unit scale."""
    return grad_input_scale


def to_left_grad_scale(
    output_scale: float, grad_left_scale: float, grad_right_scale: float
) -> float:
    """Keep the gradient of the left of two operands at unit scale."""
    return grad_left_scale


def to_right_grad_scale(
    output_scale: float, grad_left_scale: float, grad_right_scale: float
) -> float:
    """Keep the gradient of the right of two operands at unit scale."""
    return grad_right_scale


CONSTRAINTS: dict[str, Callable[..., float]] = {
    "gmean": gmean,
    "hmean": hmean,
    "amean": amean,
    "fan_amean": fan_amean,
    "min": smallest,
    "to_output_scale": to_output_scale,
    "to_grad_input_scale": to_grad_input_scale,
    "to_left_grad_scale": to_left_grad_scale,
    "to_right_grad_scale": to_right_grad_scale,
}

# How many gradient factors the constraints that name one of them go with.
NUM_GRADS = {"to_grad_input_scale": 1, "to_left_grad_scale": 2, "to_right_grad_scale": 2}


def apply_constraint(
    constraint: str | None, output_scale: float, *grad_scales: float
) -> tuple[float, ...]:
    """Tie `output_scale` and the gradient factors of the constrained inputs.

    Guarantees: with a constraint, every entry of the result is the same number; with None, the
    factors come back as they were.

    Args:
        constraint: a name in `CONSTRAINTS`, or None for an unconstrained operation.
        output_scale: positive.
        grad_scales: positive; only those of inputs on edges that are not cut-edges. None of them:
            nothing is tied, and the output keeps its own factor.
    Raises:
        ValueError: an unknown name, or one that does not fit the number of gradient factors.
    """
    if constraint is None:
        return (output_scale, *grad_scales)
    if constraint not in CONSTRAINTS:
        raise ValueError(unknown_constraint(constraint))
    expected = NUM_GRADS.get(constraint, len(grad_scales))
    if len(grad_scales) != expected:
        raise ValueError(
            f"constraint {constraint!r} goes with {expected} constrained input(s), "
            f"this operation has {len(grad_scales)}: use 'to_output_scale' or 'gmean'."
        )
    return (CONSTRAINTS[constraint](output_scale, *grad_scales),) * (1 + len(grad_scales))


def unknown_constraint(constraint: object) -> str:
    """What to tell the caller: the value, the legal ones and the nearest of them."""
    nearest = get_close_matches(str(constraint), CONSTRAINTS, n=1, cutoff=0.0)[0]
    legal = ", ".join(map(repr, CONSTRAINTS))
    return (
        f"unknown constraint {constraint!r}, expected None or one of {legal}; nearest: {nearest!r}."
    )
