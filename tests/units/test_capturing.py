"""What torch.compile does to a model on its way to us: breaks, recompiles, regions, custom code."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from units.training import assert_trains_as_plain, named
from unitscale.record import record
from unitscale.units import apply_recipe, rows, unit_scale
from unitscale.units.forward import session_of

# 2026-11-24: torch 2.13's Dynamo reads `.grad` of what crosses a graph break, and instantiates the
# Functions that it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


class Layers(nn.Module):
    """Two layers of width 8 whose output is far from unit scale; subclasses say what is between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return x.tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x) * 20)).square().mean() * 1e-3


def batch(size: int = 4, length: int = 3) -> tuple[Tensor]:
    return (torch.randn(size, length, 8, generator=torch.Generator().manual_seed(size)),)


def with_between(function) -> type[Layers]:
    return type("Model", (Layers,), {"between": function})


def graph_break(model: Layers, x: Tensor) -> Tensor:
    y = x.tanh() * 3
    torch._dynamo.graph_break()
    return y + x


def break_on_a_value(model: Layers, x: Tensor) -> Tensor:
    return x.tanh() if x.sum().item() > 0 else x.sin() * 2


def view_across_a_break(model: Layers, x: Tensor) -> Tensor:
    """The first graph returns a tensor and a view of it; then the view is written to."""
    y = x * 2
    row = y[:, 0]
    torch._dynamo.graph_break()
    row.mul_(3)
    return y


def view_of_an_input_across_a_break(model: Layers, x: Tensor) -> Tensor:
    y = x * 2
    torch._dynamo.graph_break()
    row = y[:, 0]
    torch._dynamo.graph_break()
    row.mul_(3)
    return y


def same_tensor_across_a_break(model: Layers, x: Tensor) -> Tensor:
    y = z = x * 2
    torch._dynamo.graph_break()
    z.mul_(3)
    return y


def loop_over_rows(model: Layers, x: Tensor) -> Tensor:
    state = x[:, 0]
    for i in range(1, 3):
        state = torch.tanh(model.first(state) + x[:, i])
    return state


class CubedGradient(torch.autograd.Function):
    """Its backward is not linear: held gradients would come out wrong."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 0.5, x.exp2()

    @staticmethod
    def backward(ctx, grad, other):
        (x,) = ctx.saved_tensors
        return (grad * 1e3) ** 3 + other.sign() * x


def custom_function(model: Layers, x: Tensor) -> Tensor:
    left, right = CubedGradient.apply(x.tanh())
    return left + right


@torch.compiler.allow_in_graph
def opaque(x: Tensor) -> tuple[Tensor, Tensor]:
    return CubedGradient.apply(x)


def function_allowed_in_the_graph(model: Layers, x: Tensor) -> Tensor:
    left, right = opaque(x.tanh())
    return left * right


def clipped_gradient(model: Layers, x: Tensor) -> Tensor:
    """A hook is not linear either, and must see the true gradient."""
    y = x.tanh()
    y.register_hook(lambda grad: grad.clamp(-1e-5, 1e-5))
    return y * 2


def autocast_region(model: Layers, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = model.second(x) @ model.first.weight
        y = F.scaled_dot_product_attention(y, y.sin(), y.tanh()) + y
    with torch.autocast("cpu", enabled=False):
        return y.float() * 2


def vectorized(model: Layers, x: Tensor) -> Tensor:
    """Tensors of functorch levels have no RMS to read."""
    return torch.vmap(lambda row: row.tanh() * row.sum())(x)


def inner_gradient(model: Layers, x: Tensor) -> Tensor:
    return torch.func.grad(lambda y: y.sin().sum() * 2)(x) + x


def conditional(model: Layers, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda y: y.sin() * 3, lambda y: y.cos() * 5, (x * 2,))


def checkpointed_dropout(model: Layers, x: Tensor) -> Tensor:
    def body(x: Tensor, y: Tensor) -> Tensor:
        return F.dropout(torch.tanh(model.first(x) + y), 0.25)

    return checkpoint(body, x, x.sin() * 4, use_reentrant=False) + x


def checkpointed_twice(model: Layers, x: Tensor) -> Tensor:
    def body(x: Tensor) -> tuple[Tensor, Tensor]:
        y = model.first(x) * 3
        return y, y.tanh()

    left, right = checkpoint(body, x, use_reentrant=False)
    left, right = checkpoint(body, left * right, use_reentrant=False)
    return left + right


BETWEEN = [
    graph_break,
    break_on_a_value,
    view_across_a_break,
    view_of_an_input_across_a_break,
    same_tensor_across_a_break,
    loop_over_rows,
    custom_function,
    function_allowed_in_the_graph,
    clipped_gradient,
    autocast_region,
    vectorized,
    inner_gradient,
    conditional,
    checkpointed_twice,
]


@pytest.mark.parametrize("function", BETWEEN, ids=lambda f: f.__name__)
def test_training_is_bit_identical_with(function):
    assert_trains_as_plain(with_between(function), batch())


def test_recomputed_dropout_is_that_of_the_forward_pass():
    """As in eager PyTorch; `torch.compile(backend="eager")` draws new masks in backward."""
    assert_trains_as_plain(with_between(checkpointed_dropout), batch(), plain=None)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x) * 3
        torch._dynamo.graph_break()
        return self.down(y.tanh()) + x


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) * 2
        return x.square().mean()


@pytest.mark.parametrize("remeasure", ["once", "geometric"])
def test_blocks_that_break_share_graphs_and_train_as_plain(remeasure):
    """Dynamo runs the same two graphs for every block; each block has units of its own in them."""
    model = assert_trains_as_plain(Blocks, batch(), steps=4, remeasure=remeasure)
    assert {"blocks.0.up.linear", "blocks.2.down.linear"} <= named(model).keys()


def unlike_blocks() -> Blocks:
    """Block i multiplies by 100**i more."""
    model = Blocks()
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            block.up.weight.mul_(100.0**i)
    return model


def test_blocks_that_break_are_measured_one_by_one():
    model = unit_scale(unlike_blocks(), "fp32-units", inner="eager", remeasure=[0, 1])
    for _ in range(3):
        model(*batch()).backward()
        model.zero_grad()
    found = named(model)
    held = [found[f"blocks.{i}.up.linear"] for i in range(3)]
    assert all(0.7 < row.rms / row.s < 1.5 for row in held)
    assert held[0].s < held[1].s < held[2].s
    assert session_of(model).store.step == 3


def test_blocks_that_break_are_recorded_one_by_one():
    with record(unlike_blocks(), every=1) as recorder:
        recorder.model(*batch()).backward()
    rms = {row["name"]: row["rms"] for row in recorder.rows if row["direction"] == "value"}
    assert rms["blocks.2.up.linear"] > 10 * rms["blocks.0.up.linear"]


def test_a_graph_without_parameters_keeps_the_largest_of_its_calls():
    """What tells the calls apart is the parameters; here the second graph of a block has none."""

    class Plain(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            torch._dynamo.graph_break()
            return y.tanh() * 3

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = Plain(), Plain()

        def forward(self, x: Tensor) -> Tensor:
            return (self.large(x * 1e-3) + self.small(x * 1e-6)).square().mean()

    model = unit_scale(Model(), "fp32-units", inner="eager", remeasure="once")
    for _ in range(2):
        nn.init.zeros_(model.small.up.bias)
        nn.init.zeros_(model.large.up.bias)
        model(*batch()).backward()
    large = named(model)["large.up.linear"].rms
    (shared,) = (row for name, row in named(model).items() if name.endswith("tanh"))
    assert shared.rms == pytest.approx(large, rel=1e-3)


class Jagged(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).values().square().mean()


def test_nested_tensor_is_refused_and_named():
    x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.jagged)
    with pytest.raises(Exception, match=r"'x' is a nested tensor.*pad it to a rectangle"):
        unit_scale(Jagged(), inner="eager")(x)
    torch._dynamo.reset()
    apply_recipe(Jagged(), "fp32", inner="eager")(x).backward()  # which changes nothing


def test_wrapper_subclass_keeps_one_and_says_so():
    """A DTensor, say; here two tensors in one."""
    x = TwoTensor(torch.randn(4, 8), torch.randn(4, 8))
    model = unit_scale(Layers(), "fp32-units", inner="eager")
    model(x).backward()
    inner = [row for row in rows(model) if row.op not in ("parameter", "input")]
    assert all(row.reason == "tensor subclass" for row in inner)
    assert all((row.s, row.phi) == (1.0, 1.0) for row in inner)
