"""A checkpoint around a scaled model: what it computes again is what was computed."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import unitscale as us
from units.training import named
from unitscale.units import unit_scale
from unitscale.units.forward import session_of

# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what a graph is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Block(nn.Module):
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down((self.up(x) * 5).sin()))


def batch(scale: float = 1.0, size: int = 6) -> Tensor:
    return torch.randn(size, 8, generator=torch.Generator().manual_seed(size)) * scale


def blocks(recipe: str | None, rate: float = 0.0, **options) -> list[nn.Module]:
    torch.manual_seed(0)
    made = [Block(rate) for _ in range(2)]
    if recipe is not None:
        made = [unit_scale(block, recipe, **{"inner": "eager"} | options) for block in made]
    return made


def step(made: list[nn.Module], x: Tensor, how: bool | None) -> list[Tensor]:
    """Loss and gradients; `how`: use_reentrant, or None for no checkpoint."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = x
    for block in made:
        block.zero_grad()
        y = block(y) if how is None else checkpoint(block, y, use_reentrant=how)
    loss = y.square().mean() * 1e-3
    loss.backward()
    return [loss.detach(), x.grad, *(p.grad.clone() for b in made for p in b.parameters())]


def assert_bits(got: list[Tensor], want: list[Tensor]) -> None:
    """Equal to the bit."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a, b), f"result {i} is off by {(a - b).abs().max():.1e}"


def test_assert_bits_fails_on_one_of_several():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="result 1"):
        assert_bits([x, x], [x, x.nextafter(x * 2)])


@pytest.mark.parametrize("remeasure", ["geometric", "once", [0, 3], "drift"], ids=str)
@pytest.mark.parametrize("how", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_units_change_no_bit_under_a_checkpoint(how, rate, remeasure):
    made, plain = blocks("fp32-units", rate, remeasure=remeasure), blocks(None, rate)
    for scale in (1.0, 1.0, 64.0, 64.0, 1.0):
        assert_bits(step(made, batch(scale), how), step(plain, batch(scale), how))


class Captured(nn.Module):
    """A module whose capture evaluates ops once more: what those save is no part of the call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.part = {
            "gru cell": lambda: nn.GRUCell(8, 8),
            "lstm cell": lambda: nn.LSTMCell(8, 8),
            "tanh cell": lambda: nn.RNNCell(8, 8),
            "in place": lambda: nn.Linear(8, 8),
            "pooling": lambda: nn.Sequential(nn.Linear(8, 8), nn.AdaptiveAvgPool1d(4)),
        }.get(kind, lambda: nn.MultiheadAttention(8, 2))()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.part, nn.MultiheadAttention):
            x = x.unsqueeze(1) * 2
            y, weights = self.part(x, x, x, need_weights="weights" in self.kind)
            return y if weights is None else y * weights.square().sum()
        if self.kind == "in place":
            y = self.part(x)
            return y.add_(x).exp_()
        y = self.part(x)
        return y[0] * y[1] if isinstance(y, tuple) else y


CAPTURED = ["attention", "attention, weights", "gru cell", "lstm cell", "tanh cell", "in place"]


@pytest.mark.parametrize("recipe", ["fp32-units", "fp8"])
@pytest.mark.parametrize("how", [False, True])
@pytest.mark.parametrize("kind", [*CAPTURED, "pooling"])
def test_the_first_call_may_be_computed_again(kind, how, recipe):
    """The call that captures: to the bit as without a checkpoint, and as the plain model."""
    found = []
    for scaled, inside in ((True, how), (True, None), (False, how)):
        torch.manual_seed(0)
        module = Captured(kind)
        made = [unit_scale(module, recipe, inner="eager") if scaled else module]
        found.append([y for _ in range(2) for y in step(made, batch(), inside)])
    got, alone, plain = found
    assert_bits(got, alone)
    if recipe == "fp32-units":
        assert_bits(got, plain)
    else:
        assert not torch.equal(got[0], plain[0])


@pytest.mark.parametrize("how", [False, True])
def test_rounded_gradients_are_those_without_the_checkpoint(how):
    made, other = blocks("fp8"), blocks("fp8")
    exact = blocks(None)
    for _ in range(6):
        got, want = step(made, batch(), how), step(other, batch(), None)
        assert_bits(got, want)
        assert not torch.equal(got[0], step(exact, batch(), None)[0])


@pytest.mark.parametrize("how", [False, True])
def test_a_recomputation_does_not_count_as_a_step(how):
    made = blocks("fp8")
    for _ in range(5):
        step(made, batch(), how)
    for block in made:
        assert session_of(block).store.step == 5
        assert named(block)["up.linear"].grad_rms is not None
        assert us.coverage(block) == 1.0


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_two_calls_of_one_model_under_checkpoints(inner):
    """Both are computed again in one backward pass, each at the units that it had."""
    made, plain = blocks("fp32-units", inner=inner)[0], blocks(None)[0]
    for _ in range(4):
        results = []
        for net in (made, plain):
            net.zero_grad()
            total = torch.zeros(())
            for scale in (1.0, 64.0):
                total = total + checkpoint(net, batch(scale), use_reentrant=False).square().mean()
            total.backward()
            results.append([p.grad.clone() for p in net.parameters()])
        if inner == "eager":
            assert_bits(*results)
        else:
            torch.testing.assert_close(*results)


@pytest.mark.parametrize("impl", list(CheckpointImpl))
def test_checkpoint_wrapper_around_scaled_layers(impl):
    made, plain = blocks("fp32-units"), blocks(None)
    wrapped, other = (
        [checkpoint_wrapper(block, checkpoint_impl=impl) for block in group]
        for group in (made, plain)
    )
    for scale in (1.0, 1.0, 8.0):
        assert_bits(step(wrapped, batch(scale), None), step(other, batch(scale), None))


@pytest.mark.parametrize("impl", list(CheckpointImpl))
def test_checkpoint_wrapper_inside_of_a_scaled_model(impl):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(
        *(checkpoint_wrapper(b, checkpoint_impl=impl) for b in blocks(None))
    )
    model, plain = unit_scale(make(), "fp8", inner="eager"), make()
    for count in range(3):
        got, want = step([model], batch(), None), step([plain], batch(), None)
        error = ((got[0] - want[0]).norm() / want[0].norm()).item()
        assert 2.0**-14 < error < 0.25, (count, error)
    assert us.coverage(model) == 1.0


def test_checkpoint_sequential_of_scaled_layers():
    made, plain = blocks("fp32-units"), blocks(None)
    for _ in range(3):
        results = []
        for group in (made, plain):
            for block in group:
                block.zero_grad()
            x = batch().requires_grad_()
            checkpoint_sequential(group, 2, x, use_reentrant=False).square().mean().backward()
            results.append([x.grad, *(p.grad.clone() for b in group for p in b.parameters())])
        assert_bits(*results)
