"""Delayed scales: made of the amaxes of earlier training steps, and of nothing else."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from units.delayed import amaxes, assert_close, drawn, scaled, step
from unitscale.formats import E4M3FN, E5M2, Codec
from unitscale.units import apply_recipe, unit_scale

VALUE, GRADIENT = Codec(format=E4M3FN), Codec(format=E5M2)


class Simulated:
    """The same layer written out, with a history of its own."""

    def __init__(self, history: int = 16, margin: int = 0, reduce: str = "max") -> None:
        self.history, self.margin, self.reduce = history, margin, reduce
        self.amaxes: dict[str, list[float]] = {"x": [], "w": [], "g": []}

    def rounded(self, name: str, t: Tensor, codec: Codec) -> Tensor:
        """Rounded at the scale of earlier steps, or of this one if there are none."""
        known = self.amaxes[name] or [t.abs().max().item()]
        amax = max(known) if self.reduce == "max" else known[0]
        return codec.round(t, scale=amax / codec.format.max * 2.0**self.margin)

    def step(self, x: Tensor, w: Tensor, g: Tensor) -> list[Tensor]:
        """Output, and the gradients of x and w; then the amaxes are remembered."""
        x_, w_ = self.rounded("x", x, VALUE), self.rounded("w", w, VALUE)
        g_ = self.rounded("g", g, GRADIENT)
        for name, t in (("x", x), ("w", w), ("g", g)):
            self.amaxes[name] = [t.abs().max().item(), *self.amaxes[name]][: self.history]
        return [F.linear(x_, w_), g_ @ w_, g_.T @ x_]


def test_assert_close_sees_another_scale():
    x = drawn()
    one, other = (VALUE.round(x, scale=scale) for scale in (0.01, 0.011))
    assert_close([one], [one * (1 + 2.0**-23)])
    with pytest.raises(AssertionError):
        assert_close([one], [other])


AMPLITUDES = [1.0, 3.0, 2.0, 100.0, 1.0, 0.5, 0.01, 0.01, 0.01, 0.01, 7.0]


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "options",
    [{}, {"history": 3}, {"history": 3, "margin": 1}, {"reduce": "most_recent"}, {"history": 1}],
    ids=str,
)
def test_steps_are_those_of_a_simulation(inner, options):
    model, simulated = scaled(inner=inner, **options), Simulated(**options)
    for index, amplitude in enumerate(AMPLITUDES):
        x, g = drawn(amplitude, index), drawn(1 / amplitude, 100 + index)
        assert_close(step(model, x, g), simulated.step(x, model.layer.weight.detach(), g))


def share_saturated(model: nn.Module, amplitude: float) -> tuple[float, float]:
    """Of an input: its largest value beside that of the output it was rounded to, and the error."""
    x = drawn(amplitude)
    with torch.no_grad():
        model.layer.weight.copy_(torch.eye(8))
    y = step(model, x, drawn())[0]
    return (y.abs().max() / x.abs().max()).item(), ((y - x).norm() / x.norm()).item()


def test_a_hundred_times_larger_saturates_one_step_and_recovers():
    """The definition of working of delayed scaling, D.8 (3) of the specification."""
    model = scaled()
    for _ in range(3):
        peak, error = share_saturated(model, 1.0)
        assert peak == pytest.approx(1.0)
        assert error < 2.0**-4
    peak, _ = share_saturated(model, 100.0)
    assert peak == pytest.approx(0.01, rel=1e-5)
    for _ in range(3):
        peak, error = share_saturated(model, 100.0)
        assert peak == pytest.approx(1.0)
        assert error < 2.0**-4


@pytest.mark.parametrize("history", [1, 16])
def test_a_hundred_times_smaller_keeps_the_old_scale_for_the_history(history):
    """Values of 1/100 are 4.48 at most in units of the old scale, so lose bits below 2^-6 of it."""
    model = scaled(history=history)
    x = drawn(0.01)
    old = VALUE.round(x, scale=drawn().abs().max().item() / 448)
    new = VALUE.round(x, scale=x.abs().max().item() / 448)
    assert not torch.equal(old, new)
    with torch.no_grad():
        model.layer.weight.copy_(torch.eye(8))
    step(model, drawn(), drawn())
    for count in range(history + 3):
        expected = old if count < history else new
        assert_close(step(model, x, drawn())[:1], [expected])


# What changes the history, and what does not.


def test_the_history_names_the_operands_of_each_product():
    model = scaled()
    x, g = drawn(2.0), drawn(0.5)
    step(model, x, g)
    found = amaxes(model)
    weight = model.layer.weight.detach()
    want = {"layer.linear:0": x, "layer.linear:1": weight, "layer.linear:gradient": g}
    assert found == {name: [t.abs().max().item()] for name, t in want.items()}


@pytest.mark.parametrize("is_eval", [False, True])
def test_evaluation_does_not_change_the_history(is_eval):
    model = scaled()
    step(model, drawn(), drawn())
    before = amaxes(model)
    model.train(not is_eval)
    with torch.no_grad():
        first = model(drawn(0.01))
        model(drawn(1e4))
        assert torch.equal(model(drawn(0.01)), first)
    assert amaxes(model) == before


def test_an_evaluation_takes_the_scales_that_training_has_made():
    model = scaled()
    step(model, drawn(100.0), drawn())
    with torch.no_grad():
        y = model(drawn(0.01))
    weight = VALUE.round(model.layer.weight.detach())
    scale = drawn(100.0).abs().max().item() / 448
    assert_close([y], [F.linear(VALUE.round(drawn(0.01), scale=scale), weight)])


def test_a_call_without_a_backward_pass_leaves_no_amax():
    model = scaled()
    step(model, drawn(), drawn())
    before = amaxes(model)
    model(drawn(1e4))
    assert amaxes(model) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_leaves_the_scale(value):
    model, other = scaled(), scaled()
    for m in (model, other):
        step(m, drawn(), drawn())
    x = drawn()
    x[2, 3] = value
    step(model, x, drawn())
    found = amaxes(model)
    assert found["layer.linear:0"] == amaxes(other)["layer.linear:0"]
    assert len(found["layer.linear:gradient"]) == 2  # that step's gradient is sound
    got, want = step(model, drawn(), drawn()), step(other, drawn(), drawn())
    assert_close(got, want)


def test_only_the_wrong_row_is_lost_once_there_is_a_history():
    """A scale from earlier steps does not turn the whole tensor into NaN."""
    model = scaled()
    step(model, drawn(), drawn())
    x = drawn()
    x[2, 3] = float("nan")
    y = step(model, x, drawn())[0]
    assert y[2].isnan().all()
    assert y[[0, 1, 3, 4, 5]].isfinite().all()


def test_every_accumulated_micro_batch_counts():
    model = scaled()
    parts = [drawn(1.0), drawn(5.0), drawn(2.0)]
    for x in parts:
        model(x).backward(drawn())
    assert amaxes(model)["layer.linear:0"] == [x.abs().max().item() for x in parts[::-1]]


def test_two_calls_before_one_backward_pass_count_in_any_order():
    model = scaled()
    one, two = drawn(1.0), drawn(5.0)
    (model(one).sum() + model(two).sum()).backward()
    found = amaxes(model)["layer.linear:0"]
    assert sorted(found) == [one.abs().max().item(), two.abs().max().item()]


@pytest.mark.parametrize(
    "how",
    [
        False,
        True,
    ],
    ids=["recomputed", "reentrant"],
)
def test_a_checkpoint_around_the_model_changes_nothing(how):
    model, plain = scaled(), scaled()
    for index, amplitude in enumerate(AMPLITUDES):
        x, g = drawn(amplitude, index), drawn(1.0, index + 50)
        assert_close(step(model, x, g, how), step(plain, x, g))
        assert amaxes(model) == amaxes(plain)


def test_a_copy_has_a_history_of_its_own():
    model = scaled()
    step(model, drawn(), drawn())
    copied = copy.deepcopy(model)
    step(copied, drawn(9.0), drawn())
    assert amaxes(model)["layer.linear:0"] == [drawn().abs().max().item()]
    assert len(amaxes(copied)["layer.linear:0"]) == 2


# Products of every kind.


class Everything(nn.Module):
    """Linear, convolution, attention, einsum, a product without a weight, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)
        self.left = nn.Parameter(torch.randn(16, 16) / 4)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, i: Tensor) -> Tensor:
        x = self.emb(i)
        x = x + self.conv(x.mT).mT
        x = x + self.attn(x, x, x, need_weights=False)[0]
        x = x + (self.left @ x.mT).mT
        x = x + torch.einsum("bij,jk->bik", torch.matmul(x, x.mT).softmax(-1) @ x, self.left)
        return F.cross_entropy(self.head(x).flatten(0, 1), i.flatten())


@pytest.mark.parametrize("how", [apply_recipe, unit_scale])
def test_a_first_step_is_one_of_current_scales(how):
    """And every operand of every product has its amax afterwards."""
    found = []
    i = torch.randint(0, 20, (3, 10))
    for name in ("fp8-current", "fp8-delayed"):
        torch._dynamo.reset()
        model = how(Everything(), name, inner="eager")
        loss = model(i)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    known = amaxes(model)
    assert all(len(history) == 1 for history in known.values())
    products = {name.partition(":")[0] for name in known}
    assert len(products) == sum(row.product is not None for row in us.unit_rows(model))
    assert sum(name.endswith(":gradient") for name in known) == len(products)
