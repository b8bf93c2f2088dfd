"""A measuring step is a step of the recipe: what it rounds, and the units that it sets."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitscale as us
from units.training import named
from unitscale.formats import E4M3FN, round_to
from unitscale.units import apply_recipe, unit_scale
from unitscale.units.forward import session_of

NAN = float("nan")


class Net(nn.Module):
    """Two layers; subclasses say what is between. The output is far from unit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def between(self, x: Tensor) -> Tensor:
        return x.tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x) * 20)).square().mean() * 1e-3


class Sums(Net):
    """Tensors whose gradients are sums of several, of different sizes."""

    def between(self, x: Tensor) -> Tensor:
        y = x.tanh()
        return x + y * 30 + (x.sin() - y * 0.01) + x


class Views(Net):
    def between(self, x: Tensor) -> Tensor:
        left, right = (x * 2).view(-1, 2, 8).transpose(0, 1).chunk(2)
        both = torch.cat([left, right * 100], -1).squeeze(0)
        return both[:, [1, 0, *range(2, 16)]].reshape(-1, 16).sin()


class Normed(Net):
    def between(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (16,)) * 7 + F.softmax(x, -1).cumsum(-1)


class Attention(Net):
    def between(self, x: Tensor) -> Tensor:
        heads = x.view(-1, 2, 8).transpose(0, 1)
        y = F.scaled_dot_product_attention(heads.sin(), heads, heads.tanh() * 3)
        return y.transpose(0, 1).flatten(1)


class InPlace(Net):
    def between(self, x: Tensor) -> Tensor:
        y = x * 3
        y.mul_(2)
        y += x
        return y.relu()


class Checkpointed(Net):
    def body(self, x: Tensor) -> Tensor:
        y = x.sin() * 50
        return self.second(y) + y.cos()

    def between(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False) + x


class Broken(Net):
    """Two graphs: what is between them is held at (1, 1)."""

    def between(self, x: Tensor) -> Tensor:
        y = x.sin() * 10
        torch._dynamo.graph_break()
        return y.tanh() + y


NETS = [Net, Sums, Views, Normed, Attention, InPlace, Checkpointed, Broken]

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def batch(scale: float = 1.0, size: int = 8) -> Tensor:
    return torch.randn(size, 16, generator=torch.Generator().manual_seed(size)) * scale


def made(make: type[Net] = Net, recipe: str | None = "fp8", **options) -> Net:
    torch.manual_seed(0)
    model = make()
    return model if recipe is None else unit_scale(model, recipe, **{"inner": "eager"} | options)


def step(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The loss and every gradient of one step; the parameters stay."""
    model.zero_grad()
    loss = model(*inputs)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_bits(got: list[Tensor], want: list[Tensor]) -> None:
    """Equal to the bit."""
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a, b), f"result {i} is off by {(a - b).abs().max():.1e}"


def test_assert_bits_fails_on_the_last_bit():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="result 0"):
        assert_bits([x], [x * (1 + 2.0**-23)])


class Seen:
    """What an observer sees of one step: the RMS of each tensor as it is held."""

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        session_of(model).terms.observer = lambda prefix: self

    def read(self, tensor, held: Tensor, log2: int, operand_log2: int | None) -> None:
        if tensor.pinned is None:
            self.values[tensor.name] = held.detach().double().square().mean().sqrt().item()

    def read_gradient(self, tensor, carried: Tensor, log2: int) -> None:
        if tensor.pinned is None:
            self.gradients[tensor.name] = carried.double().square().mean().sqrt().item()


def assert_unit_scale(found: dict[str, float]) -> None:
    """Every RMS is within sqrt(2) of 1, up to the error of a float32 sum; 0 has no scale."""
    low, high = 2.0**-0.5 * (1 - 1e-6), 2.0**0.5 * (1 + 1e-6)
    wrong = {name: rms for name, rms in found.items() if rms != 0 and not low <= rms <= high}
    assert not wrong


def test_assert_unit_scale_fails_for_one_tensor():
    assert_unit_scale({"x": 1.0, "y": 0.0})
    for rms in (0.70, 1.42, NAN):
        with pytest.raises(AssertionError):
            assert_unit_scale({"x": 1.0, "y": rms})


@pytest.mark.parametrize("make", NETS)
def test_tensors_are_at_unit_scale_in_the_first_step_forward_and_backward(make):
    model = made(make, "fp32-units")
    seen = Seen(model)
    step(model, batch())
    assert len(seen.values) >= 4
    assert len(seen.gradients) >= 4
    assert_unit_scale(seen.values)
    assert_unit_scale(seen.gradients)


def test_units_that_are_off_are_seen_by_this_test():
    model = made(recipe="fp32-units", remeasure="once")
    step(model, batch())
    seen = Seen(model)
    step(model, batch(1e3))
    with pytest.raises(AssertionError):
        assert_unit_scale(seen.values)


@pytest.mark.parametrize("make", NETS)
def test_units_of_the_first_step_are_those_that_it_ran_at(make):
    model = made(make, "fp32-units")
    session, held = session_of(model), {}

    class Reader(Seen):
        def read(self, tensor, value: Tensor, log2: int, operand_log2: int | None) -> None:
            held.setdefault(tensor.name, operand_log2)

    Reader(model)
    step(model, batch())
    session.terms.collect()
    checked = 0
    for name, exponent in held.items():
        if exponent is not None and name in session.store.units:
            assert session.store.units[name].s == exponent, name
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize(
    ("recipe", "inner"),
    [
        ("fp8", "eager"),
        ("fp8-e4m3", "eager"),
        ("fp8-e4m3", "aot_eager"),
        pytest.param("fp8", "aot_eager", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("make", [Net, Sums, Attention, Checkpointed])
def test_the_first_step_is_the_tenth_to_the_bit(make, recipe, inner):
    """Steps 0, 1, 2, 4 and 8 measure and the others run the rewritten graph: one function."""
    model, exact = made(make, recipe, inner=inner), made(make, "fp32-units", inner=inner)
    first = step(model, batch())
    assert not torch.equal(first[0], step(exact, batch())[0]), "nothing was rounded"
    for _ in range(4):
        again = step(model, batch())
        if inner == "eager":
            assert_bits(again, first)
        else:  # a compiler may sum in another order, and a value may round to its other neighbor
            torch.testing.assert_close(again, first, rtol=2.0**-4, atol=2.0**-10)


@pytest.mark.parametrize("make", NETS)
def test_units_without_rounding_change_no_bit_of_any_step(make):
    model, plain = made(make, "fp32-units"), made(make, None)
    for scale in (1.0, 1.0, 64.0, 1.0, 0.01):
        assert_bits(step(model, batch(scale)), step(plain, batch(scale)))


@pytest.mark.parametrize("grad", [True, False])
def test_the_first_product_is_one_of_values_on_the_grid(grad):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    model, x = unit_scale(layer, "fp8", inner="eager"), batch(50.0)
    with torch.set_grad_enabled(grad):
        got = model(x)
    if grad:
        got.square().mean().backward()
    s, t = named(model)["input"].s, named(model)["weight"].s
    want = (round_to(x / s, E4M3FN) @ round_to(layer.weight / t, E4M3FN).T) * (s * t) + layer.bias
    # Sums of 17 terms in any order: 17 * 2^-24 of the largest, which is below twice the amax.
    torch.testing.assert_close(got, want, rtol=0, atol=2.0**-18 * want.abs().max().item())
    exact = x @ layer.weight.T + layer.bias
    assert (got - exact).norm() > 2.0**-9 * exact.norm()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.count = nn.Linear(16, 16), nn.Linear(16, 5), 0

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.count += 1
        logits = self.out(self.hidden(x).relu())
        return logits if labels is None else F.cross_entropy(logits, labels)


LABELS = torch.arange(8) % 5


@pytest.mark.parametrize("trained", [0, 1, 3])
def test_the_same_evaluation_gives_the_same_bits_at_the_first_and_the_tenth_call(trained):
    model = made(Classifier)
    for _ in range(trained):
        step(model, batch(), LABELS)
    model.eval()
    for inputs in ((batch(),), (batch(), LABELS)):
        with torch.no_grad():
            first, *others = (model(*inputs) for _ in range(10))
        assert all(torch.equal(y, first) for y in others)


def test_evaluation_with_and_without_labels_has_the_same_logits():
    model, plain = made(Classifier), made(Classifier, None)
    step(model, batch(), LABELS)
    model.eval()
    with torch.no_grad():
        logits, loss = model(batch()), model(batch(), LABELS)
        # One float32 loss of logits by the same kernel, on values that a power of two apart.
        torch.testing.assert_close(F.cross_entropy(logits, LABELS), loss, rtol=1e-6, atol=0)
        assert not torch.equal(logits, plain(batch()))


def test_evaluation_of_other_rows_first_does_not_change_training():
    model, other = made(Classifier), made(Classifier)
    other.eval()
    with torch.no_grad():
        other(batch(3.0, size=4))
    other.train()
    for _ in range(3):
        got, want = step(other, batch(), LABELS), step(model, batch(), LABELS)
    assert_bits(got, want)


def test_an_attribute_that_counts_calls_does_not_make_every_step_measure():
    model, measured = made(Classifier), []
    for _ in range(9):
        step(model, batch(), LABELS)
        measured.append(session_of(model).terms.measured)
    assert [i for i, flag in enumerate(measured) if flag] == [0, 1, 2, 4, 8]
    assert (model.count, session_of(model).store.step) == (9, 9)
    assert us.coverage(model) == 1.0


def test_labels_that_give_nan_at_the_first_step_are_told_and_measured_after():
    ignored = torch.full((8,), -100)
    model = made(Classifier)
    assert step(model, batch(), ignored)[0].isnan()
    with pytest.warns(UserWarning, match=r"units were not measured: .* holds NaN"):
        got = step(model, batch(), LABELS)
    assert_bits(got, step(made(Classifier), batch(), LABELS))
    assert named(model)["out.linear"].grad_rms is not None


@pytest.mark.parametrize("recipe", ["fp32-units", "fp8"])
def test_two_forward_passes_before_one_backward(recipe):
    model, plain = made(Normed, recipe), made(Normed, None)
    for count in range(4):
        results = []
        for net in (model, plain):
            net.zero_grad()
            loss = (net(batch()) - net(batch(2.0))).square() * 1e4
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in net.parameters())])
        if recipe == "fp32-units":
            assert_bits(*results)
        else:
            assert not torch.equal(results[0][0], results[1][0]), count
    assert session_of(model).store.step == 8
    assert named(model)["first.linear"].grad_rms is not None


@pytest.mark.parametrize("late", [True, False])
def test_a_backward_pass_that_comes_late_does_not_bring_old_units(late):
    model = made(recipe="fp32-units")
    abandoned = model(batch(size=5))
    for size in range(6, 12):
        step(model, batch(1024.0, size=size))
    before = dict(session_of(model).store.units)
    counted = session_of(model).store.step
    if late:
        abandoned.backward()
    named(model)
    with torch.no_grad():
        model(batch(size=5))
    assert session_of(model).store.units == before
    assert session_of(model).store.step == counted
    assert before["first.linear"].s >= 9


def with_outliers() -> Tensor:
    """RMS about 4 and one element of 2,000: 496 times the RMS, where E4M3FN ends at 448."""
    x = torch.randn(16384, 16, generator=torch.Generator().manual_seed(0))
    x[7, 3] = 2000.0
    return x


def test_operands_with_outliers_have_headroom_and_other_tensors_do_not():
    class Beside(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).mean() + x.abs().sqrt().square().mean()

    model = made(Beside)
    step(model, with_outliers())
    row = named(model)["x"]
    assert row.amax / row.rms > 448
    assert row.amax / row.s <= E4M3FN.max / 2
    assert row.saturated == 0.0
    beside = named(model)["square"]
    assert beside.amax / beside.s > E4M3FN.max / 2
    assert 2.0**-0.5 <= beside.rms / beside.s <= 2.0**0.5


def test_outliers_are_within_half_a_step_of_the_grid_at_the_first_call():
    torch.manual_seed(0)
    model = unit_scale(nn.Linear(16, 16, bias=False), "fp8", inner="eager")
    nn.init.eye_(model.weight)
    x = with_outliers()
    with torch.no_grad():
        y = model(x)
    assert y[7, 3].item() == pytest.approx(2000.0, rel=2.0**-4)


@pytest.mark.parametrize("recipe", ["fp8", "fp8-e4m3"])
def test_gradients_with_outliers_have_headroom_too(recipe):
    class Weighted(Net):
        def forward(self, x: Tensor) -> Tensor:
            return (self.first(x * 1e-3) * with_outliers()).sum()

    model = made(Weighted, recipe)
    step(model, torch.ones(16384, 16))
    row, limit = named(model)["first.linear"], 448 if recipe == "fp8-e4m3" else 57344
    assert row.grad_amax / row.grad_rms > 448
    assert row.grad_amax * row.phi <= limit / 2
    assert (row.grad_rms * row.phi < 2.0**-0.5) == (recipe == "fp8-e4m3")


def test_a_recipe_without_units_rounds_its_measuring_steps_too():
    torch.manual_seed(0)
    model = apply_recipe(Net(), "fp8-current", inner="eager", remeasure=[0, 2])
    results = [step(model, batch()) for _ in range(4)]
    for found in results[1:]:
        assert_bits(found, results[0])
    assert not torch.equal(results[0][0], made(recipe=None)(batch()))
    assert math.isfinite(named(model)["first.linear"].grad_rms)
