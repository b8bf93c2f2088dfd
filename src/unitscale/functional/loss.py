"""Losses: torch's value, and a gradient at unit scale for every element.

The loss is the end of the graph, so its factor is free: it makes a loss scale superfluous. Forward
nothing is multiplied, and a loss compares with anyone's. Backward the gradient that reaches the
input has scale 1 under every reduction: a mean is multiplied by what it divides by. The factor
belongs to the true gradient at the start of training, where logits are near 0.

What a mean divides by is counted from the shape, so that every step has the weight it has in torch.
With `ignore_index` and a share r of valid tokens, the gradient of a valid token is `1 / r` under
"mean" and 1 under "sum" and "none".

Class weights, soft targets and the target of `kl_div` decide the size of the gradient: there the
factor is computed from them, on the device and without the input. A loss of Inf then becomes NaN.

Half-precision input is computed in float32, and a loss returned in float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating, check_mult, num_rows, shape
from unitscale.scaling import scaled
from unitscale.scaling.factors import (
    LossFactors,
    bce_with_logits_factors,
    cross_entropy_factors,
    huber_factors,
    l1_factors,
    mse_factors,
    nll_loss_factors,
    smooth_l1_factors,
)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    mult: float = 1.0,
) -> Tensor:
    """`F.cross_entropy(mult * input, ...)`, gradient multiplied by about `sqrt(classes)`.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...].
        target: class ids without the axis C, or probabilities of the input's shape.
        weight: [C]. The factor then divides by the rms of the weights of the targets.
        ignore_index: ids that count for nothing; see the module for what a mean does with them.
        reduction: "mean", "sum" or "none".
        mult: multiplies the logits (u-muP's loss multiplier); their gradient stays at unit scale.
    Raises:
        TypeError: logits that are not floating-point.
        ValueError: shapes that do not fit, an unknown reduction, or `mult` is not positive.
    Source: Blake, Orr, Luschi 2023, compendium of ops: `C / sqrt(C - 1)` per token.
    """
    check_floating("cross_entropy", input=input)
    axis = check_classes("cross_entropy", input, target, weight)
    classes = input.shape[axis]
    divisor = mean_divisor("cross_entropy", reduction, num_rows(input, classes))
    input = sharpened("cross_entropy", full_precision(input), mult)
    weight = None if weight is None else weight.to(input.dtype)
    soft = target.is_floating_point()
    loss = F.cross_entropy(
        input,
        target.to(input.dtype) if soft else target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if soft:
        grad = uniform_prediction_grad(target.to(input.dtype), weight, axis, label_smoothing)
        return scale_gradient(loss, divisor / rms(grad))
    factors = cross_entropy_factors(classes, divisor=divisor, label_smoothing=label_smoothing)
    if weight is None:
        return scale_loss(loss, factors)
    spread = target_weight_spread(target, weight, ignore_index, reduction)
    return scale_gradient(loss, factors.grad_input_scale / spread)


def nll_loss(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`F.nll_loss` of log-probabilities: one entry per token has a gradient, of size `sqrt(C)`."""
    check_floating("nll_loss", input=input)
    axis = check_classes("nll_loss", input, target, None)
    classes = input.shape[axis]
    divisor = mean_divisor("nll_loss", reduction, num_rows(input, classes))
    factors = nll_loss_factors(classes, divisor=divisor)
    loss = F.nll_loss(full_precision(input), target, ignore_index=ignore_index, reduction=reduction)
    return scale_loss(loss, factors)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    mult: float = 1.0,
) -> Tensor:
    """`F.binary_cross_entropy_with_logits`, gradient at unit scale whatever the share of positives.

    `weight` and `pos_weight` enter the factor through the rms of the gradient at logit 0; `mult`
    multiplies the logits, whose gradient stays at unit scale.
    """
    op = "binary_cross_entropy_with_logits"
    check_floating(op, input=input, target=target, weight=weight, pos_weight=pos_weight)
    check_same_shape(op, input, target)
    divisor = mean_divisor(op, reduction, input.numel())
    input = sharpened(op, full_precision(input), mult)
    target = target.to(input.dtype)
    weight, pos_weight = (None if x is None else x.to(input.dtype) for x in (weight, pos_weight))
    loss = F.binary_cross_entropy_with_logits(
        input, target, weight, reduction=reduction, pos_weight=pos_weight
    )
    factors = bce_with_logits_factors(divisor=divisor)
    if weight is None and pos_weight is None:
        return scale_loss(loss, factors)
    # At logit 0 the gradient is half of this, which without weights is 1 everywhere.
    positive = target if pos_weight is None else target * pos_weight
    residual = (1 - target - positive) * (1 if weight is None else weight)
    return scale_gradient(loss, factors.grad_input_scale / rms(residual))


def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """`F.mse_loss`, gradient at unit scale for independent input and target of unit scale."""
    loss, divisor = elementwise_loss("mse_loss", F.mse_loss, input, target, reduction)
    return scale_loss(loss, mse_factors(divisor=divisor))


def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """`F.l1_loss`: the gradient is a sign, at unit scale once a mean's divisor is undone."""
    loss, divisor = elementwise_loss("l1_loss", F.l1_loss, input, target, reduction)
    return scale_loss(loss, l1_factors(divisor=divisor))


def huber_loss(
    input: Tensor, target: Tensor, *, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """`F.huber_loss`, gradient at unit scale for independent input and target of unit scale."""
    loss, divisor = elementwise_loss(
        "huber_loss", F.huber_loss, input, target, reduction, delta=delta
    )
    return scale_loss(loss, huber_factors(delta, divisor=divisor))


def smooth_l1_loss(
    input: Tensor, target: Tensor, *, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """`F.smooth_l1_loss`, gradient at unit scale for independent input and target of unit scale."""
    loss, divisor = elementwise_loss(
        "smooth_l1_loss", F.smooth_l1_loss, input, target, reduction, beta=beta
    )
    return scale_loss(loss, smooth_l1_factors(beta, divisor=divisor))


def kl_div(
    input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """`F.kl_div` of log-probabilities: their gradient is the target's probability over its rms.

    Args:
        reduction: "mean", "batchmean", "sum" or "none".
    """
    op = "kl_div"
    check_floating(op, input=input, target=target)
    check_same_shape(op, input, target)
    if reduction == "batchmean":
        divisor = input.shape[0] if input.dim() else 1
    else:
        divisor = mean_divisor(op, reduction, input.numel(), "batchmean")
    input, target = full_precision(input), full_precision(target)
    loss = F.kl_div(input, target, reduction=reduction, log_target=log_target)
    return scale_gradient(loss, divisor / rms(target.exp() if log_target else target))


def sharpened(op: str, logits: Tensor, mult: float) -> Tensor:
    """`mult * logits` with the gradient of the logits: a loss is a cut-edge, so its factor is free.

    Raises:
        ValueError: `mult` is not a positive number.
    """
    check_mult(op, mult=mult)
    return scaled(logits, mult, 1.0)


def elementwise_loss(
    op: str,
    function: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    reduction: str,
    **params: float,
) -> tuple[Tensor, int]:
    """Torch's loss of two tensors of one shape, and what its mean divides by."""
    check_floating(op, input=input, target=target)
    check_same_shape(op, input, target)
    divisor = mean_divisor(op, reduction, input.numel())
    input, target = full_precision(input), full_precision(target)
    return function(input, target, reduction=reduction, **params), divisor


def scale_loss(loss: Tensor, factors: LossFactors) -> Tensor:
    """The loss's own value; the factor waits at the top of the backward pass."""
    return scaled(loss, factors.output_scale, factors.grad_input_scale)


def scale_gradient(loss: Tensor, factor: Tensor) -> Tensor:
    """`scaled(loss, 1, factor)` for a factor computed on the device: no synchronisation."""
    value = loss.detach()
    return value + factor.detach() * (loss - value)


def rms(x: Tensor) -> Tensor:
    """Root mean square; kept off 0, so that targets without a gradient give one of 0, not NaN."""
    return x.detach().square().mean().sqrt().clamp_min(1e-12)


def uniform_prediction_grad(
    target: Tensor, weight: Tensor | None, axis: int, label_smoothing: float
) -> Tensor:
    """Gradient of a soft-target cross entropy by logits that are all equal, as at the start."""
    classes = max(target.shape[axis], 1)
    mass = target * (1 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        mass = mass * weight.view(-1, *(1,) * (target.dim() - axis - 1))
    return mass.sum(axis, keepdim=True) / classes - mass


def target_weight_spread(
    target: Tensor, weight: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    """Rms of the class weights of the valid targets, over their mean where a mean divides by it."""
    valid = target != ignore_index
    weights = weight[torch.where(valid, target, 0)] * valid
    count = valid.sum().clamp_min(1)
    spread = (weights.square().sum() / count).sqrt().clamp_min(1e-12)
    return spread / (weights.sum() / count) if reduction == "mean" else spread


def full_precision(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def mean_divisor(op: str, reduction: str, count: int, *more: str) -> int:
    """What a mean divides by, 1 for the other reductions; refuses those that do not exist."""
    if reduction not in ("mean", "sum", "none"):
        legal = ", ".join(map(repr, ("mean", "sum", "none", *more)))
        raise ValueError(f"{op}: reduction is {reduction!r}, expected one of {legal}.")
    return max(count, 1) if reduction == "mean" else 1


def check_same_shape(op: str, input: Tensor, target: Tensor) -> None:
    """Torch would broadcast, which in a loss is nearly always a mistake."""
    if input.shape != target.shape:
        raise ValueError(
            f"{op}: input has shape {shape(input)} and target {shape(target)}, "
            "expected equal shapes; add or squeeze an axis, or expand the target."
        )


def check_classes(op: str, input: Tensor, target: Tensor, weight: Tensor | None) -> int:
    """The axis of the classes, once target and weights fit it."""
    if input.dim() == 0:
        raise ValueError(f"{op}: input has shape [], expected [C], [N, C] or [N, C, d1, ...].")
    axis = min(input.dim() - 1, 1)
    expected = list(input.shape)
    if not target.is_floating_point():
        if target.dtype != torch.int64:
            raise TypeError(
                f"{op}: target has dtype {target.dtype}, expected class ids of dtype torch.int64 "
                "or floating-point probabilities; convert ids with target.long()."
            )
        del expected[axis]
    if list(target.shape) != expected:
        raise ValueError(
            f"{op}: target has shape {shape(target)}, expected {expected} for an input of shape "
            f"{shape(input)}; classes are axis {axis}: move them there with input.movedim(-1, 1)."
        )
    if weight is not None and weight.shape != (input.shape[axis],):
        raise ValueError(
            f"{op}: weight has shape {shape(weight)}, expected [{input.shape[axis]}], "
            "one per class."
        )
    return axis
