"""A recipe holds in every call of a scaled model, or the call says that it does not."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import unitscale as us
from units.training import named
from unitscale.formats import E4M3FN, round_to
from unitscale.units import capturing, unit_scale

pytestmark = [
    # 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def batch(size: int = 6) -> Tensor:
    return torch.randn(size, 8, generator=torch.Generator().manual_seed(size))


def scaled(make: Callable[[], nn.Module] = Two, recipe: str = "fp8", **options) -> nn.Module:
    torch.manual_seed(0)
    return unit_scale(make(), recipe, **{"inner": "eager"} | options)


def pair(make: Callable[[], nn.Module] = Two) -> tuple[nn.Module, nn.Module]:
    """A scaled model and a plain one with the same parameters."""
    model = scaled(make)
    torch.manual_seed(0)
    return model, make()


def assert_rounds(model: nn.Module, plain: nn.Module, *inputs) -> Tensor:
    """The output differs from the plain model's, by no more than FP8 products do.

    Two operands of RMS 1 with 3 bits of mantissa: 2^-4 each at most, and 2^-5.6 on average; a few
    such products one after the other stay below a quarter.
    """
    got, want = model(*inputs), plain(*inputs)
    error = ((got - want).norm() / want.norm()).item()
    assert error > 2.0**-9, f"nothing was rounded: the error is {error:.1e}"
    assert error < 0.25, f"the error is {error:.2f}"
    return got


def test_assert_rounds_fails_where_nothing_is_rounded_and_where_all_is_lost():
    plain = Two()
    with pytest.raises(AssertionError, match="nothing was rounded"):
        assert_rounds(plain, plain, batch())
    with pytest.raises(AssertionError, match="the error is"):
        assert_rounds(Two(), plain, batch())


def compiled_step(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(lambda x: model(x) * 1, backend="eager")


def compiled_model(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: nn.Module) -> Callable[..., Tensor]:
    model.compile(backend="eager")
    return model


class Parent(nn.Module):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x * 1) * 1


def compiled_parent(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(Parent(model), backend="eager")


def parent_compiled_in_place(model: nn.Module) -> Callable[..., Tensor]:
    parent = Parent(model)
    parent.compile(backend="eager")
    return parent


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


OUTER = [
    compiled_step,
    compiled_model,
    compiled_in_place,
    compiled_parent,
    parent_compiled_in_place,
]


@pytest.mark.parametrize("make", [Two, sequential])
@pytest.mark.parametrize("outer", OUTER)
def test_a_compiler_around_a_scaled_model_keeps_the_recipe(outer, make):
    model, plain = pair(make)
    outside = outer(model)
    for _ in range(3):
        assert_rounds(outside, plain, batch())
    outside(batch()).square().mean().backward()
    assert us.coverage(model) == 1.0


@pytest.mark.parametrize("outer", OUTER)
def test_a_compiler_around_is_the_same_numerics_to_the_bit(outer):
    model, other = scaled(), scaled()
    want = [model(batch()) for _ in range(2)]
    outside = outer(other)
    for y in want:
        assert torch.equal(outside(batch()), y)


def test_parent_of_a_scaled_child_is_refused_and_left_as_it_was():
    parent = Parent(scaled())
    with pytest.raises(ValueError, match=r"unit_scale: 'child' of this Parent is scaled already"):
        unit_scale(parent)
    plain = Parent(Two())
    torch.manual_seed(0)
    plain.child = Two()
    assert_rounds(parent, plain, batch())
    unit_scale(Parent(us.unscale(parent.child)))


@pytest.mark.parametrize("make", [sequential, lambda: nn.Linear(8, 8)], ids=["sequential", "leaf"])
def test_a_module_of_torch_itself_is_scaled(make):
    model, plain = pair(make)
    assert_rounds(model, plain, batch())
    assert us.coverage(model) == 1.0


def test_encoder_layer_of_torch_is_scaled():
    make = lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, plain = pair(make)
    assert_rounds(model, plain, batch(12).view(2, 6, 8))
    assert us.coverage(model) > 0.9


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.recurrent = kind(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.recurrent(self.first(x))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_module_among_linear_ones_is_named_and_leaves_the_others_covered(kind):
    model, plain = pair(lambda: Recurrent(kind))
    x = batch(12).view(2, 6, 8)
    found = rf"'fp8' is not in force in recurrent \(.*does not capture nn.{kind.__name__}, which"
    with pytest.warns(UserWarning, match=found):
        model(x)
    assert_rounds(model, plain, x)
    kinds = {name: row for name, row in named(model).items() if row.product is not None}
    assert {"first.linear", "second.linear"} <= kinds.keys()
    assert all(row.product.why is None for row in kinds.values())
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    assert us.coverage(model) == pytest.approx(2 / (2 + 2 * gates))
    assert "not covered: recurrent" in str(us.summary(model))


class Experts(nn.Module):
    """Rows are picked by value, so the loop breaks the graph, and Dynamo skips the frame."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(8, count)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        chosen, output = x.abs().argmax(-1) % len(self.experts), torch.zeros_like(x)
        gate = self.router(x).softmax(-1)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero()[:, 0]
            output = output.index_add(0, rows, expert(x[rows]) * gate[rows, index, None])
        return output


def test_experts_in_a_loop_that_breaks_the_graph_are_all_rounded():
    model, plain = pair(Experts)
    for _ in range(3):
        assert_rounds(model, plain, batch(24)).square().mean().backward()
    names = {name for name, row in named(model).items() if row.product is not None}
    assert {"router.linear", *(f"experts.{i}.linear" for i in range(3))} <= names
    assert us.coverage(model) == 1.0


class OwnMatrix(nn.Module):
    """A product of the root's own, in a frame that Dynamo gives up on."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(8))
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            torch._dynamo.graph_break()
            x = self.layer(x) @ self.matrix
        return x


def test_product_of_a_frame_that_is_not_captured_is_named():
    model = scaled(OwnMatrix)
    found = r"not in force in the model itself \(the forward of OwnMatrix could not be captured\)"
    with pytest.warns(UserWarning, match=found):
        model(batch())
    assert "layer.linear" in named(model)
    assert 0.0 < us.coverage(model) < 1.0
    model(batch())  # once is enough


def test_parameter_that_nothing_uses_is_no_trouble():
    class Unused(Two):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(3))

    model, plain = pair(Unused)
    assert_rounds(model, plain, batch())
    assert us.coverage(model) == 1.0


def test_the_twelfth_model_of_a_class_is_rounded_as_the_first():
    for _ in range(12):
        model, plain = pair()
        assert_rounds(model, plain, batch())


class Refusing(Two):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            raise ValueError("one row is too few")
        return super().forward(x)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("errors", [1, 3])
def test_an_exception_that_the_caller_catches_is_forgotten(before, errors):
    model, plain = pair(Refusing)
    for _ in range(before):
        assert_rounds(model, plain, batch())
    for _ in range(errors):
        with pytest.raises(ValueError, match="one row is too few"):
            model(batch(1))
    for size in (6, 6, 5):
        assert_rounds(model, plain, batch(size))
    assert us.coverage(model) == 1.0


def test_an_exception_in_an_expert_is_forgotten():
    class Fails(Experts):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 1:
                self.experts[0](x[:, :4])
            return super().forward(x)

    model, plain = pair(Fails)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            model(batch(1))
        assert_rounds(model, plain, batch(24))
    assert us.coverage(model) == 1.0


@pytest.mark.parametrize("before", [0, 1])
def test_counting_operations_warns_and_leaves_later_calls_rounded(before):
    model, plain = pair()
    for _ in range(before):
        assert_rounds(model, plain, batch())
    with (
        FlopCounterMode(display=False) as counter,
        pytest.warns(UserWarning, match=r"Two runs without its.*FlopCounterMode\)") as told,
    ):
        y = model(batch())
    assert len(told) == 1  # and not one for each of its modules
    assert torch.equal(y, plain(batch()))
    assert counter.get_total_flops() == 2 * 2 * 6 * 8 * 8
    for _ in range(3):
        assert_rounds(model, plain, batch())


DISABLED = """
import torch, unitscale as us
model = us.unit_scale(torch.nn.Linear(8, 8), "fp8")
try:
    model(torch.randn(2, 8))
except RuntimeError as error:
    print(error)
else:
    print("it ran")
us.unscale(model)(torch.randn(2, 8))
"""


@pytest.mark.parametrize(
    ("value", "expected"), [("1", "torch.compile is disabled"), ("0", "it ran")]
)
def test_compiler_disabled_by_the_environment_is_an_error(value, expected):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DISABLED],
        env={**os.environ, "TORCH_COMPILE_DISABLE": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected)


def test_compiler_disabled_by_its_setting_is_an_error_and_passes():
    model, plain = pair()
    with (
        torch._dynamo.config.patch(disable=True),
        pytest.raises(RuntimeError, match=r"disabled.*Two cannot run under recipe 'fp8'.*unscale"),
    ):
        model(batch())
    assert_rounds(model, plain, batch())


def test_more_compilations_than_the_limit_are_an_error_and_not_a_plain_model(monkeypatch):
    class Flagged(Two):
        def forward(self, x: Tensor, flag: str = "") -> Tensor:
            return super().forward(x) * (1 if flag else 2)

    monkeypatch.setattr(capturing, "LEAST_LIMIT", 1)
    model, plain = pair(Flagged)
    with torch._dynamo.config.patch(recompile_limit=1):
        for flag in "01":
            assert_rounds(model, plain, batch(), flag)
        with pytest.raises(RuntimeError, match=r"compiled Flagged 2 times.*without its recipe"):
            model(batch(), "2")


def test_export_is_refused_by_name_and_possible_after_unscale():
    model = scaled()
    with pytest.raises(Exception, match=r"Two is scaled, and torch.export would.*us\.unscale"):
        torch.export.export(model, (batch(),))
    torch.export.export(us.unscale(model), (batch(),))


def test_children_called_by_themselves_are_rounded():
    class Caller(Two):
        """A model without a forward that is used: its training step calls its parts."""

        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    model, plain = pair(Caller)
    with pytest.raises(NotImplementedError):
        model(batch())
    first = assert_rounds(model.first, plain.first, batch())
    assert_rounds(model.second, plain.second, first.detach())
    assert {"first.linear", "second.linear"} <= named(model).keys()


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_products_are_those_of_operands_on_the_grid_of_the_format(inner):
    """By hand: x / s and w / s rounded to E4M3FN, at every call and in every mode."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = unit_scale(layer, "fp8", inner=inner)
    for step in range(4):
        with torch.set_grad_enabled(step != 2):
            got = model(batch() * 50)
        if got.requires_grad:
            got.square().mean().backward()
        found = named(model)
        s, t = found["input"].s, found["weight"].s
        held, weight = round_to(batch() * 50 / s, E4M3FN), round_to(layer.weight / t, E4M3FN)
        want = held @ weight.T * (s * t) + layer.bias
        # The sums of 9 terms may go in another order: 9 * 2^-24 of the largest of them.
        torch.testing.assert_close(got, want, rtol=0, atol=2.0**-20 * want.abs().max().item())
