"""What is held between products is in eight bits: COAT's flow, on any model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from units.flow_models import WIDTH, Block, HandGELU, HandLayerNorm, Model, RMSNorm, batch
from unitscale.formats import E4M3FN
from unitscale.recipes import (
    Operand,
    Recipe,
    Unit,
    parse,
    parse_operand,
    uniform,
)
from unitscale.train.measure import saved_for_backward
from unitscale.units.flow import Flow
from unitscale.units.forward import require_session
from unitscale.units.keep import again, codes, point_like
from unitscale.units.region import regions

COAT = parse("coat")
GROUPS = "E4M3FN current 1x16"
# Products in full precision: what differs from the plain model is what is held.
FLOW = Recipe(name="flow", rules=uniform(E4M3FN, E4M3FN), saved=COAT.saved, skip=("*",))


def step(
    recipe: Recipe | None,
    make: Any = lambda: Block(RMSNorm()),
    *,
    scale: bool = False,
    calls: int = 1,
    count: int = 2,
    checkpoints: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients and bytes held of the last of some calls on one batch."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Model(*(make() for _ in range(count)), checkpoints=checkpoints).to(dtype)
    if recipe is not None:
        give = us.unit_scale if scale else us.apply_recipe
        give(model, recipe, **({"inner": "eager"} | options))
    for _ in range(calls):
        model.zero_grad()
        torch.manual_seed(1)
        with saved_for_backward(model) as held:
            loss = model(batch(dtype))
        loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, held.bytes


def error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """The relative error of all gradients together."""
    assert got.keys() == want.keys()
    off = sum((got[n] - want[n]).double().square().sum() for n in got)
    return float((off / sum(want[n].double().square().sum() for n in want)).sqrt())


MODELS = {
    "rms_norm by hand": lambda: Block(RMSNorm()),
    "layer_norm by hand": lambda: Block(HandLayerNorm()),
    "nn.LayerNorm": lambda: Block(nn.LayerNorm(WIDTH)),
    "nn.RMSNorm": lambda: Block(nn.RMSNorm(WIDTH)),
    "gelu by hand": lambda: Block(nn.LayerNorm(WIDTH), HandGELU()),
    "gelu, dropout": lambda: Block(nn.RMSNorm(WIDTH), F.gelu, 0.5),
    "relu": lambda: Block(nn.RMSNorm(WIDTH), F.relu),
}


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_exact_and_gradients_are_those_at_held_values(name: str) -> None:
    plain, exact, before = step(None, MODELS[name])
    loss, got, after = step(FLOW, MODELS[name])
    assert torch.equal(loss, plain)
    # Each held value is off by 2^-4 at most and by 2^-5.2 on average; a gradient of a weight
    # passes three of them (gate, up, norm) in each of two blocks.
    assert 0 < error(got, exact) < 3 * 2**-5
    assert after < before
    # What lies after everything that is held has its gradient to the bit, its bias say.
    assert torch.equal(got["blocks.1.down.bias"], exact["blocks.1.down.bias"])


@pytest.mark.parametrize("name", ["rms_norm by hand", "gelu by hand"])
def test_a_norm_or_function_written_out_is_one_region(name: str) -> None:
    torch.manual_seed(0)
    model = us.apply_recipe(Model(MODELS[name]()), FLOW, inner="eager")
    model(batch())
    (executable,) = require_session(model, "test").executables
    (place,) = executable.places.values()
    calls = [n for n in place.program.rewritten_module.graph.nodes if n.target is again]
    norm, gated = calls
    # norm: the residual stream alone. gated: gate and up; silu and its product are computed again.
    assert [sum(x is not None for x in call.args[2]) for call in (norm, gated)] == [1, 2]


def by_hand(block: Block, x: Tensor) -> Tensor:
    """The gradient of the stream of a block with products in full precision, step by step."""
    x = block.inward(x).detach()
    here = point_like(codes(x, GROUPS), GROUPS, x).requires_grad_()
    y = block.norm(x)
    gate, up = block.gate(y), block.up(y)
    points = [point_like(codes(t, GROUPS), GROUPS, t).detach().requires_grad_() for t in (gate, up)]
    out = x + block.down(block.act(gate) * up)
    grad = 2 * out / out.numel()
    inner = block.act(points[0]) * points[1]
    by_gate, by_up = torch.autograd.grad(inner, points, grad @ block.down.weight)
    by_norm = by_gate @ block.gate.weight + by_up @ block.up.weight
    (by_stream,) = torch.autograd.grad(block.norm(here), here, by_norm)
    return grad + by_stream


def test_gradients_are_those_of_a_block_written_by_hand() -> None:
    torch.manual_seed(0)
    block = Block(RMSNorm())
    model = Model(block)
    want = by_hand(block, batch()).flatten(0, 1).sum(0).detach()
    us.apply_recipe(model, FLOW, inner="eager")
    model(batch()).backward()
    got = block.inward.bias.grad
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def test_a_compiler_gives_the_same_and_holds_no_more() -> None:
    loss, eager, held = step(COAT, count=1)
    got_loss, got, compiled = step(COAT, count=1, inner="aot_eager_decomp_partition")
    torch.testing.assert_close(got_loss, loss, rtol=1e-6, atol=0)
    assert error(got, eager) < 1e-5
    assert compiled <= 1.05 * held  # a partitioner may prefer the statistics of rows


def test_a_checkpoint_changes_nothing() -> None:
    loss, want, held = step(COAT)
    got_loss, got, less = step(COAT, checkpoints=True)
    assert torch.equal(loss, got_loss)
    assert error(got, want) < 1e-6
    assert less < held


@pytest.mark.parametrize("scale", [False, True])
def test_a_measuring_step_is_an_ordinary_step(scale: bool) -> None:
    first, second = (step(COAT, scale=scale, remeasure=[0], calls=calls)[:2] for calls in (1, 2))
    torch.testing.assert_close(first[0], second[0], rtol=1e-6, atol=0)
    assert error(first[1], second[1]) < 1e-5
    assert error(first[1], step(replace(COAT, saved=None), scale=scale)[1]) > 1e-3


def test_units_go_with_it() -> None:
    exact = step(None)[1]
    recipe = replace(parse("fp32-units"), saved=COAT.saved)
    loss, got, _ = step(recipe, scale=True, remeasure="once", calls=2)
    assert torch.equal(loss, step(None)[0])
    assert 0 < error(got, exact) < 3 * 2**-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    plain = step(None, dtype=dtype)
    got = step(COAT, dtype=dtype)
    assert got[2] < 0.62 * plain[2]
    assert error(got[1], plain[1]) < 0.2


def test_autocast_is_as_it_was_when_computed_again() -> None:
    def run(recipe: Recipe | None) -> dict[str, Tensor]:
        torch.compiler.reset()
        torch.manual_seed(0)
        model = Model(Block(nn.LayerNorm(WIDTH)), Block(RMSNorm()))
        if recipe is not None:
            us.apply_recipe(model, recipe, inner="eager")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch())
        loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    assert 0 < error(run(FLOW), run(None)) < 3 * 2**-5


def test_one_copy_serves_all_products_that_take_a_tensor() -> None:
    """Of bytes too: two products, one copy of their input and none of their weights."""
    kept = {recipe.name: step(recipe)[2] for recipe in (COAT, replace(COAT, name="no", saved=None))}
    tokens, weights = 24, WIDTH * WIDTH * (1 + 2 + 2 + 2)
    # Without: input codes twice, weights in a byte each, and all of the norm and the gate whole.
    assert kept["no"] - kept["coat"] > 2 * (tokens * WIDTH + weights)


def test_shared_operands_are_what_each_product_would_take() -> None:
    """The forward pass and what is learned by it do not know of the sharing."""
    shared, own = step(COAT), step(replace(COAT, saved=None))
    assert torch.equal(shared[0], own[0])
    assert torch.equal(shared[1]["blocks.1.down.weight"], own[1]["blocks.1.down.weight"])


def test_what_writes_in_between_is_left_alone() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.register_buffer("seen", torch.ones(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = y * self.seen.exp()
            self.seen.mul_(2.0)
            return x + self.b(F.silu(z) * y)

    plain, exact, _ = step(None, Writes, calls=2)
    loss, got, _ = step(FLOW, Writes, calls=2)
    assert torch.equal(loss, plain)
    assert 0 < error(got, exact) < 3 * 2**-5


def test_a_loss_in_the_graph_is_never_rounded() -> None:
    class Fits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(WIDTH, WIDTH)
            self.b = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return (self.b(F.silu(self.a(x))) - x).pow(2).mean(-1).mean()

    torch.manual_seed(0)
    model = us.apply_recipe(Fits(), FLOW, inner="eager")
    model(batch()).backward()
    torch.manual_seed(0)
    plain = Fits()
    plain(batch()).backward()
    assert torch.equal(model.b.bias.grad, plain.b.bias.grad)
    assert not torch.equal(model.a.bias.grad, plain.a.bias.grad)


def test_a_model_with_nothing_to_hold_is_told_so() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).softmax(-1)).square().mean()

    model = us.apply_recipe(Products(), COAT, inner="eager")
    with torch.no_grad():
        model(batch())  # says nothing: backward needs nothing
    with pytest.warns(UserWarning, match=r"Products: recipe 'coat' is to hold .* 1x16"):
        model(batch())
    model(batch())  # and once only


def test_operands_that_nothing_could_be_held_in_are_refused() -> None:
    for wrong in ("E4M3FN unit", "BF16 current", "E4M3FN current 4x4", "E4M3FN current stochastic"):
        with pytest.raises(ValueError, match=rf"saved is '{wrong}'; expected 8 bits"):
            replace(COAT, saved=parse_operand(wrong))
    with pytest.raises(TypeError, match="saved is 'E4M3FN'; expected a FloatFormat"):
        replace(COAT, saved="E4M3FN")
    with pytest.raises(ValueError, match="saved is 'E4M3FN unit'"):
        us.unit_scale(Block(RMSNorm()), "fp8", saved=Operand(E4M3FN, Unit()))


def test_regions_leave_sums_and_tables_out() -> None:
    """A residual sum would bring two tensors for one; cosines get no gradient."""
    graph = torch.fx.Graph()

    def node(op: Any, *args: Any, grad: bool = True, shape: tuple[int, ...] = (4, 32)) -> Any:
        made = graph.placeholder(op) if isinstance(op, str) else graph.call_function(op, args)
        made.meta["example_value"] = torch.empty(shape, requires_grad=grad)
        return made

    x, y, cos = node("x"), node("y"), node("cos", grad=False)
    turned = node(torch.mul, x, cos)
    total = node(torch.add, turned, y)
    graph.output(node(F.gelu, total))
    (region,) = regions(graph)
    assert ([n.target for n in region.nodes], region.inputs) == ([F.gelu], (total,))
    assert Flow(torch.fx.GraphModule({}, graph), COAT.saved).is_held(total)
