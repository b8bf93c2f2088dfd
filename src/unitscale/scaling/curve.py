"""The element-wise functions of torch.nn.functional as rows of data: a formula and its kinks.

A row takes torch's parameters under torch's names and defaults. `kinks` lists where the function or
its derivative jumps; quadrature cuts there. Where a parameter can make the function bend sharply
without a kink, the row adds points around the bend, so that it is resolved.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unitscale.scaling.quadrature import Array

__all__ = ["CURVES", "Curve"]


@dataclass(frozen=True)
class Curve:
    """`f` on float64 arrays, smooth except at `kinks`."""

    f: Callable[[Array], Array]
    kinks: tuple[float, ...] = ()


SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def erf(x: Array) -> Array:
    """numpy has no error function."""
    return np.array([math.erf(value) for value in x])


def sigmoid(x: Array) -> Array:
    """Without overflow on either side."""
    return 0.5 * (1 + np.tanh(x / 2))


def exp_below(x: Array, alpha: float) -> Array:
    """`x` above 0, `alpha * (exp(x / alpha) - 1)` below."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def bends(center: float, width: float) -> tuple[float, ...]:
    """Cuts around a place where a function bends within `width`."""
    return (center, *(center + sign * width * 2**k for sign in (-1, 1) for k in range(6)))


def leaky(slope: float) -> Curve:
    """Slope 1 above 0, `slope` below."""
    return Curve(lambda x: np.where(x > 0, x, slope * x), (0.0,))


def gelu(approximate: str = "none") -> Curve:
    """Torch's two forms."""
    if approximate == "none":
        return Curve(lambda x: x / 2 * (1 + erf(x / math.sqrt(2))))
    if approximate == "tanh":
        slope = math.sqrt(2 / math.pi)
        return Curve(lambda x: x / 2 * (1 + np.tanh(slope * (x + 0.044715 * x**3))))
    raise ValueError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'.")


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    """Linear beyond `threshold`, as torch has it."""
    return Curve(
        lambda x: np.where(beta * x > threshold, x, np.logaddexp(0, beta * x) / beta),
        (threshold / beta, *bends(0.0, 1 / beta)),
    )


CURVES: dict[str, Callable[..., Curve]] = {
    "identity": lambda: Curve(lambda x: x),
    "relu": lambda: leaky(0.0),
    "relu6": lambda: Curve(lambda x: np.clip(x, 0, 6), (0.0, 6.0)),
    "leaky_relu": lambda negative_slope=0.01: leaky(negative_slope),
    "prelu": lambda weight=0.25: leaky(weight),
    "rrelu": lambda lower=1 / 8, upper=1 / 3: leaky((lower + upper) / 2),
    "relu_squared": lambda: Curve(lambda x: np.maximum(x, 0) ** 2, (0.0,)),
    "gelu": gelu,
    "quick_gelu": lambda: Curve(lambda x: x * sigmoid(1.702 * x)),
    "silu": lambda: Curve(lambda x: x * sigmoid(x)),
    "mish": lambda: Curve(lambda x: x * np.tanh(np.logaddexp(0, x))),
    "hardswish": lambda: Curve(lambda x: x * np.clip(x + 3, 0, 6) / 6, (-3.0, 3.0)),
    "sigmoid": lambda: Curve(sigmoid),
    "hardsigmoid": lambda: Curve(lambda x: np.clip(x / 6 + 0.5, 0, 1), (-3.0, 3.0)),
    "logsigmoid": lambda: Curve(lambda x: -np.logaddexp(0, -x)),
    "softplus": softplus,
    "tanh": lambda: Curve(np.tanh),
    "tanhshrink": lambda: Curve(lambda x: x - np.tanh(x)),
    "hardtanh": lambda min_val=-1.0, max_val=1.0: Curve(
        lambda x: np.clip(x, min_val, max_val), (min_val, max_val)
    ),
    "softsign": lambda: Curve(lambda x: x / (1 + np.abs(x)), (0.0,)),
    "elu": lambda alpha=1.0: Curve(
        lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))), (0.0,)
    ),
    "celu": lambda alpha=1.0: Curve(lambda x: exp_below(x, alpha), bends(0.0, alpha)),
    "selu": lambda: Curve(
        lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))), (0.0,)
    ),
    "hardshrink": lambda lambd=0.5: Curve(
        lambda x: np.where(np.abs(x) > lambd, x, 0.0), (-lambd, lambd)
    ),
    "softshrink": lambda lambd=0.5: Curve(
        lambda x: np.sign(x) * np.maximum(np.abs(x) - lambd, 0), (-lambd, lambd)
    ),
    "threshold": lambda threshold, value: Curve(
        lambda x: np.where(x > threshold, x, value), (threshold,)
    ),
    "abs": lambda: Curve(np.abs, (0.0,)),
    "square": lambda: Curve(np.square),
    "exp": lambda: Curve(np.exp),
    "sin": lambda: Curve(np.sin),
    "cos": lambda: Curve(np.cos),
    "erf": lambda: Curve(erf),
}
