"""What works on a compiled model works on a scaled one: hooks, rates that change, and batches of
gradients."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from units.training import named
from unitscale.units import unit_scale

# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(8, 8), nn.Dropout(0.0), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.first(x) * 5).tanh())


def batch(scale: float = 1.0, size: int = 6) -> Tensor:
    return torch.randn(size, 8, generator=torch.Generator().manual_seed(size)) * scale


def pair(make: Callable[[], nn.Module] = Model, recipe: str = "fp32-units", **options) -> Any:
    """A scaled model and a plain one with the same parameters."""
    torch.manual_seed(0)
    plain = make()
    return unit_scale(copy.deepcopy(plain), recipe, **{"inner": "eager"} | options), plain


def step(model: nn.Module, *inputs: Any) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    loss = model(*inputs).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(model: nn.Module, plain: nn.Module, *inputs: Any) -> None:
    """A step of both gives the same bits."""
    for a, b in zip(step(model, *inputs), step(plain, *inputs), strict=True):
        assert torch.equal(a, b)


def test_assert_same_fails_where_parameters_differ():
    _, plain = pair()
    with pytest.raises(AssertionError):
        assert_same(Model(), plain, batch())


def double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def triple_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] * 3,)


def double_gradient(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return tuple(None if g is None else g * 2 for g in inputs)


HOOKS = {
    "forward": lambda m: m.register_forward_hook(double_output),
    "forward_pre": lambda m: m.register_forward_pre_hook(triple_input),
    "with_kwargs": lambda m: m.register_forward_hook(
        lambda m, args, kwargs, y: y * 2, with_kwargs=True
    ),
    "full_backward": lambda m: m.register_full_backward_hook(double_gradient),
}


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("where", ["", "first", "second"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "with_kwargs"])
def test_hooks_run_whenever_and_wherever_they_are_registered(kind, where, before):
    model, plain = pair()
    for _ in range(before):
        assert_same(model, plain, batch())
    changed = step(plain, batch())[0]
    handles = [HOOKS[kind](net.get_submodule(where)) for net in (model, plain)]
    for _ in range(3):
        assert_same(model, plain, batch())
    assert not torch.equal(step(model, batch())[0], changed)
    for handle in handles:
        handle.remove()
    assert_same(model, plain, batch())
    assert torch.equal(step(model, batch())[0], changed)


@pytest.mark.parametrize("before", [0, 2])
def test_backward_hooks_run_on_the_root(before):
    model, plain = pair()
    for _ in range(before):
        assert_same(model, plain, batch())
    for net in (model, plain):
        HOOKS["full_backward"](net)
    results = []
    for net in (model, plain):
        x = batch().requires_grad_()
        net(x).square().mean().backward()
        results.append(x.grad)
    assert torch.equal(*results)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when")  # as of the plain model
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("where", ["first", "second"])
def test_backward_hooks_run_on_children(where, before):
    model, plain = pair()
    for _ in range(before):
        assert_same(model, plain, batch())
    for net in (model, plain):
        HOOKS["full_backward"](net.get_submodule(where))
    for _ in range(2):
        assert_same(model, plain, batch())


def test_a_hook_on_the_root_runs_once_a_call():
    model, calls = pair()[0], []
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"))
    for count in range(1, 4):
        model(batch())
        assert calls == ["before", "after"] * count


def test_hooks_that_read_leave_the_recipe_in_force():
    model, plain = pair(recipe="fp8")
    kept: list[Tensor] = []
    for path in ("", "first", "second"):
        model.get_submodule(path).register_forward_hook(lambda m, a, y: kept.append(y.detach()))
    for _ in range(3):
        assert not torch.equal(model(batch()), plain(batch()))
    assert len(kept) == 9
    assert us.coverage(model) == 1.0


def test_parameter_hooks_see_true_gradients():
    model, plain = pair()
    seen: list[list[Tensor]] = [[], []]
    for net, found in zip((model, plain), seen, strict=True):
        net.first.weight.register_hook(found.append)
    for _ in range(3):
        assert_same(model, plain, batch())
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert len(seen[0]) == 3


def test_a_parametrization_that_comes_later_is_seen():
    model, plain = pair()
    assert_same(model, plain, batch())
    for net in (model, plain):
        nn.utils.parametrizations.weight_norm(net.first)
    for _ in range(2):
        assert_same(model, plain, batch())


class Functional(Model):
    def forward(self, x: Tensor, p: float = 0.0) -> Tensor:
        return self.second(F.dropout(self.first(x), p).tanh())


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x.sin(), x.tanh(), need_weights=False)[0]


RATES = [0.0, 0.1, 0.25, 0.3, 0.5, 0.1]


@pytest.mark.parametrize("remeasure", ["geometric", "once"])
def test_a_dropout_rate_that_changes_is_followed(remeasure):
    model, plain = pair(remeasure=remeasure)
    for rate in RATES:
        model.drop.p = plain.drop.p = rate
        assert_same(model, plain, batch())


def test_a_dropout_rate_that_is_an_argument_is_followed():
    model, plain = pair(Functional)
    for rate in RATES:
        assert_same(model, plain, batch(), rate)


def test_the_dropout_rate_of_attention_is_followed():
    """To rounding: products of one tensor with itself are summed in another order (docs/units)."""
    model, plain = pair(MultiHead)
    x = batch(size=12).view(2, 6, 8)
    for rate in RATES:
        model.attention.dropout = plain.attention.dropout = rate
        torch.testing.assert_close(step(model, x), step(plain, x), rtol=1e-5, atol=1e-7)


def test_rates_that_change_leave_products_rounded():
    model, plain = pair(recipe="fp8")
    for rate in RATES:
        model.drop.p = plain.drop.p = rate
        assert not torch.equal(step(model, batch())[0], step(plain, batch())[0])
    assert us.coverage(model) == 1.0


@pytest.mark.parametrize("before", [0, 1, 3])
def test_batches_of_gradients_are_those_of_the_plain_model(before):
    """Steps 0, 1, 2, 4 measure, 3 does not; vmap computes in another order: to rounding."""
    model, plain = pair()
    for _ in range(before):
        step(model, batch())
    found = []
    for net in (model, plain):
        x = batch(size=1).requires_grad_()
        (grad,) = torch.autograd.grad(net(x), x, torch.eye(8)[:, None], is_grads_batched=True)
        found.append(grad)
    assert found[0].shape == (8, 1, 8)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert_same(model, plain, batch())


@pytest.mark.parametrize(
    ("recipe", "vectorize"),
    [
        ("fp32-units", False),
        ("fp32-units", True),
        ("fp8", False),
        ("fp8", True),
    ],
)
def test_jacobians_are_those_of_the_plain_model(recipe, vectorize):
    model, plain = pair(recipe=recipe)
    jacobian = torch.autograd.functional.jacobian
    x = batch(size=2)
    for _ in range(4):
        got, want = jacobian(model, x, vectorize=vectorize), jacobian(plain, x)
        error = ((got - want).norm() / want.norm()).item()
        assert error < (2.0**-20 if recipe == "fp32-units" else 0.5)
        assert (error > 2.0**-9) == (recipe == "fp8")


def test_batches_of_gradients_at_the_first_step_leave_units_to_be_measured():
    model, _ = pair()
    x = batch(size=1).requires_grad_()
    torch.autograd.grad(model(x), x, torch.eye(8)[:, None], is_grads_batched=True)
    step(model, batch())
    row = named(model)["first.linear"]
    assert 2.0**-0.5 * 0.999 <= row.grad_rms * row.phi <= 2.0**0.5 * 1.001
