"""Gradient factors of losses.

A loss is the last node, so its edge is a cut-edge and its gradient factor is free: this is why
unit scaling needs no loss scale. The value of a loss is left as it is. A factor makes the gradient
of the input unit when the gradient of the loss is 1. Where a loss is a mean, `divisor` is what it
divides by (the number of entries that count, or the sum of their weights); it is 1 for a sum.
"""

import math

from unitscale.scaling.factors.activation import activation_moments
from unitscale.scaling.factors.result import LossFactors
from unitscale.scaling.softmax import at_size, softmax_law

__all__ = [
    "bce_with_logits_factors",
    "cross_entropy_factors",
    "huber_factors",
    "kl_div_factors",
    "l1_factors",
    "mse_factors",
    "nll_loss_factors",
    "smooth_l1_factors",
    "soft_cross_entropy_factors",
]


def unit_gradient(mean_square: float, divisor: float) -> LossFactors:
    """The factor for a gradient of the given mean square before division."""
    return LossFactors(output_scale=1.0, grad_input_scale=divisor * mean_square**-0.5)


def cross_entropy_factors(
    num_classes: int,
    *,
    divisor: float = 1.0,
    label_smoothing: float = 0.0,
    weight_mean_square: float = 1.0,
    valid_fraction: float = 1.0,
) -> LossFactors:
    """Softmax cross-entropy with class indices: `V / sqrt(V - 1)` for V classes.

    Exact for logits of 0. The gradient `p - onehot` of unit logits is within 1 % from V = 256 on.

    Args:
        num_classes: V; with a single class the gradient is 0 and the factor that of two classes.
        divisor: see the module.
        label_smoothing: as in torch; shrinks the gradient by 1 minus it, so it must be below 1.
        weight_mean_square: mean square of the class weight over the targets.
        valid_fraction: share of targets that are not ignored. The default keeps the factor of a
            valid row the same whatever the share; the true share makes the pooled gradient unit.
    Raises:
        ValueError: label_smoothing outside [0, 1).
    Source: Blake et al. 2023 for `V / sqrt(V - 1)`; the rest derived at logits of 0.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"cross_entropy: label_smoothing is {label_smoothing}, expected 0 or more and below 1."
        )
    classes = max(num_classes, 2)
    hard = (classes - 1) / classes**2
    smooth = (1 - label_smoothing) ** 2
    return unit_gradient(hard * smooth * weight_mean_square * valid_fraction, divisor)


def soft_cross_entropy_factors(
    num_classes: int, *, target_square_sum: float | None = None, divisor: float = 1.0
) -> LossFactors:
    """Cross-entropy with target distributions, or `KL(target || softmax(x))`, at logits of 0.

    Args:
        num_classes: 2 or more.
        target_square_sum: mean over rows of the sum of the squared target probabilities, above
            `1 / num_classes` (at which the gradient is 0). None: targets that are softmaxes of
            unit normal logits. Teacher and student both unit makes the gradient 1.41.
        divisor: see the module.
    Source: derived from `grad = 1 / V - target`.
    """
    if target_square_sum is None:
        target_square_sum = at_size(softmax_law(1.0).square, num_classes)
    return unit_gradient((target_square_sum - 1 / num_classes) / num_classes, divisor)


def kl_div_factors(target_rms: float, *, divisor: float = 1.0) -> LossFactors:
    """`kl_div` on log-probabilities, whose gradient is minus the target."""
    return unit_gradient(target_rms**2, divisor)


def nll_loss_factors(num_classes: int, *, divisor: float = 1.0) -> LossFactors:
    """Negative log-likelihood on log-probabilities: one entry per row has a gradient, of 1."""
    return unit_gradient(1 / num_classes, divisor)


def bce_with_logits_factors(
    *,
    logit_std: float = 0.0,
    pos_weight: float = 1.0,
    prior: float = 0.5,
    divisor: float = 1.0,
) -> LossFactors:
    """Binary cross-entropy with logits: 2 at logits of 0, 1.846 at unit logits, for any prior.

    Args:
        logit_std: 0 or more; the gradient is `sigmoid(x) - target`.
        pos_weight: factor on the loss of positive targets.
        prior: share of positive targets; matters only together with pos_weight.
        divisor: see the module.
    Source: derived; `E (sigmoid(x) - target)**2 = E sigmoid(x)**2` for either target.
    """
    square = activation_moments("sigmoid", mult=logit_std).mean_square if logit_std else 0.25
    return unit_gradient(square * (prior * pos_weight**2 + 1 - prior), divisor)


def mse_factors(
    *, input_std: float = 1.0, target_std: float = 1.0, divisor: float = 1.0
) -> LossFactors:
    """Squared error: `8**-0.5` for unit input and target, `1 / 2` if one of them is 0."""
    return unit_gradient(4 * (input_std**2 + target_std**2), divisor)


def l1_factors(*, divisor: float = 1.0) -> LossFactors:
    """Absolute error: the gradient is a sign."""
    return unit_gradient(1.0, divisor)


def huber_factors(
    delta: float = 1.0, *, error_std: float = math.sqrt(2), divisor: float = 1.0
) -> LossFactors:
    """Huber loss, whose gradient is the error clipped to `delta`.

    With the error `r ~ N(0, error_std**2)` and `z = delta / error_std`,
    `E clip(r)**2 = error_std**2 * (erf(z / sqrt 2) - 2 z phi(z) + z**2 erfc(z / sqrt 2))`.

    Args:
        delta: positive.
        error_std: of input minus target; sqrt 2 if both are unit and independent.
        divisor: see the module.
    Source: derived.
    """
    if not (delta > 0 and error_std > 0):
        raise ValueError(f"huber: delta {delta} and error_std {error_std} must be positive.")
    z = delta / error_std
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    inside, outside = math.erf(z / math.sqrt(2)), math.erfc(z / math.sqrt(2))
    clipped = error_std**2 * (inside - 2 * z * density + z * z * outside)
    return unit_gradient(clipped, divisor)


def smooth_l1_factors(
    beta: float = 1.0, *, error_std: float = math.sqrt(2), divisor: float = 1.0
) -> LossFactors:
    """Smooth L1 loss, the Huber loss of `delta = beta` divided by beta; L1 for a beta of 0."""
    if beta == 0:
        return l1_factors(divisor=divisor)
    return huber_factors(beta, error_std=error_std, divisor=divisor * beta)
