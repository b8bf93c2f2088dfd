"""`assert_valid_gradients`: scaled gradients point where the true gradients point."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from unitscale.scaling.primitive import Scaled


@contextmanager
def unfolded() -> Iterator[None]:
    """Inside, eager operations have their factored edges, as compiled ones always have."""

    def can_fold(*_: Tensor) -> bool:
        return False

    with ExitStack() as patches:
        for family in ("attention", "linear", "residual"):
            patches.enter_context(mock.patch(f"unitscale.functional.{family}.can_fold", can_fold))
        yield


@contextmanager
def true_gradients() -> Iterator[None]:
    """Inside, every `scaled(x, a, b)` has the derivative `a` of its value, not the declared `b`."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.bwd = inputs[1]

    with mock.patch.object(Scaled, "setup_context", staticmethod(setup_context)), unfolded():
        yield


def gradients(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)  # the same dropout masks in every run
    model.zero_grad()
    model(*inputs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_valid_gradients(model: nn.Module, *inputs: Any, tolerance: float = 1e-12) -> None:
    """Each parameter's gradient is one positive constant times the true gradient.

    `model(*inputs)` is a scalar, in float64. A gradient below 1e-12 of the largest is taken for a
    mathematical zero (a key bias under softmax), and must then be one in both.
    """
    got = gradients(model, inputs)
    with true_gradients():
        want = gradients(model, inputs)
    assert got.keys() == want.keys()
    assert got, "no parameter has a gradient"
    floors = [1e-12 * max(g.norm() for g in grads.values()) for grads in (got, want)]
    for name in got:
        a, b = got[name].flatten(), want[name].flatten()
        zeros = a.norm() <= floors[0], b.norm() <= floors[1]
        assert zeros[0] == zeros[1], f"{name}: only one of the two gradients is zero"
        if not zeros[0]:
            cosine = torch.nn.functional.cosine_similarity(a, b, dim=0, eps=0.0)
            assert 1 - cosine <= tolerance, f"{name}: cosine to the true gradient is {cosine:.6f}"
