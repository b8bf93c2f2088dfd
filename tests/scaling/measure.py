"""What a scale factor promises, measured on torch's own operation."""

from collections.abc import Callable

import torch
from torch import Tensor


def rms(x: Tensor) -> float:
    return x.double().pow(2).mean().sqrt().item()


def assert_unit(
    fn: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    output_scale: float,
    grad_scales: tuple[float, ...],
    *,
    rel: float,
    center: str = "std",
) -> None:
    """Output and every gradient, each times its factor, have scale 1 within `rel`.

    The output gradient is standard normal; `center` says whether the output's mean counts.
    """
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    y = fn(*inputs)
    grads = torch.autograd.grad(y, inputs, torch.randn_like(y))
    centered = y - y.mean() if center == "std" else y
    measured = {"output": rms(centered) * output_scale}
    for place, (grad, scale) in enumerate(zip(grads, grad_scales, strict=True)):
        measured[f"gradient {place}"] = rms(grad) * scale
    wrong = {what: value for what, value in measured.items() if abs(value - 1) > rel}
    assert not wrong, f"expected 1 within {rel}: {measured}"
