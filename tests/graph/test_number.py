"""Numbers that change between calls are nodes of the graph; nothing takes them for constants."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from marks import slow
from units.training import assert_same_trace, assert_written_out, ops, train
from unitscale.graph.expand import unexpanded_reason
from unitscale.graph.number import is_known, may_be_true
from unitscale.units import apply_recipe, rows, unit_scale
from unitscale.units.forward import session_of

RATES = (0.125, 0.25, 0.5, 0.75)


def test_a_node_is_not_known_and_may_be_true() -> None:
    node = fx.Graph().placeholder("rate")
    assert not is_known(node)
    assert may_be_true(node)
    assert is_known(0.5)
    assert [may_be_true(x) for x in (0.5, True, 0.0, False, None)] == [
        True,
        True,
        False,
        False,
        False,
    ]


class Dropping(nn.Module):
    """Layers with something between them that takes a number; the loss is far from unit scale."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.between = between

    def forward(self, x: Tensor, number: float) -> Tensor:
        y = self.between(self, self.first(x) * 20, number)
        return self.second(y).square().mean() * 1e-3


def functional(model, x, p):
    return F.dropout(x, p)


def trained(model, x, p):
    return F.dropout(x, p, model.training)


def in_place(model, x, p):
    return F.dropout(x.sin(), p, True, True)


def of_channels(model, x, p):
    return F.dropout1d(x.sin()[None], p, True)[0]


def alpha(model, x, p):
    return F.alpha_dropout(x, p, True)


def attend(model, x, p, **options):
    """What `nn.MultiheadAttention` calls, with its dropout rate as an argument."""
    layer, x = model.attention, x[:, None]
    return F.multi_head_attention_forward(
        *(x, x, x, 8, 2, layer.in_proj_weight, layer.in_proj_bias, None, None, False, p),
        *(layer.out_proj.weight, layer.out_proj.bias),
        **options,
    )


def attention(model, x, p):
    return attend(model, x, p, need_weights=False)[0][:, 0]


def attention_weights(model, x, p):
    output, weights = attend(model, x, p)
    return output[:, 0] * weights.mean()


def attention_in_evaluation(model, x, p):
    return attend(model, x, p, training=False)[0][:, 0]


def fused_attention(model, x, p):
    return F.scaled_dot_product_attention(x, x + 1, x.sin(), dropout_p=p, scale=p)


def factor(model, x, p):
    return x * p + p - x / p


def weighted_sum(model, x, p):
    return torch.add(x, x.sin(), alpha=p) + torch.lerp(x, x.cos(), p)


def slope(model, x, p):
    return F.leaky_relu(x, p) + F.elu(x.sin(), p)


def scaled_product(model, x, p):
    return torch.addmm(x, x, x.sin(), beta=p, alpha=p)


def epsilon(model, x, p):
    return F.layer_norm(x, (8,), eps=p)


def clamped(model, x, p):
    return x.clamp(-p, p)


def filled(model, x, p):
    return x.masked_fill(x > 1, p)


BETWEEN = [
    functional,
    trained,
    in_place,
    of_channels,
    alpha,
    attention,
    attention_weights,
    attention_in_evaluation,
    fused_attention,
    factor,
    weighted_sum,
    slope,
    scaled_product,
    epsilon,
    clamped,
    filled,
]


def traced(between, scale: bool, rates=RATES, plain: str | None = "eager"):
    torch.manual_seed(3)
    model = Dropping(between)
    if scale:
        unit_scale(model, "fp32-units", inner="eager", remeasure=[0])
    elif plain is not None:
        model.compile(backend=plain)
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    trace = train(model, [(x, rate) for rate in rates])
    torch._dynamo.reset()
    return model, trace


@pytest.mark.parametrize("between", BETWEEN)
def test_a_number_may_change(between) -> None:
    _, want = traced(between, scale=False)
    model, got = traced(between, scale=True)
    assert_same_trace(got, want)
    assert session_of(model).executables
    if between.__name__.startswith("attention"):
        assert_written_out(model, "multi_head_attention_forward")


def test_a_rate_that_does_not_change_is_a_constant() -> None:
    """The negative: else the test above would compare graphs without a number in them."""
    changing, _ = traced(functional, scale=True)
    constant, _ = traced(functional, scale=True, rates=(0.5,) * 4)
    assert "item" in methods(changing)
    assert "item" not in methods(constant)


def methods(model: nn.Module) -> set[str]:
    graphs = (executable.module.graph for executable in session_of(model).executables)
    return {
        str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_method"
    }


def test_a_rate_of_zero_may_come_and_go() -> None:
    """At 0 dropout returns its input; the graph for a changing rate has to give the same."""
    rates = (0.5, 0.0, 0.25, 0.0, 0.125)
    _, want = traced(functional, scale=False, rates=rates)
    _, got = traced(functional, scale=True, rates=rates)
    assert_same_trace(got, want)


def test_a_number_is_no_tensor_of_the_model() -> None:
    model, _ = traced(factor, scale=True)
    assert "number" not in {row.name for row in rows(model)}


@pytest.mark.parametrize("between", [functional, attention, fused_attention])
def test_a_recipe_stays_in_force(between) -> None:
    torch.manual_seed(3)
    model = apply_recipe(Dropping(between), "fp8-none", inner="eager")
    for rate in RATES:
        model(torch.randn(8, 8), rate).backward()
    assert "linear" in ops(model)
    assert model.first.weight.grad.isfinite().all()


@pytest.mark.parametrize("between", [functional, slow(attention), factor])
def test_sizes_and_numbers_may_be_dynamic_from_the_start(between) -> None:
    """`dynamic=True`: every size and number of the graph is a node."""
    torch.manual_seed(3)
    model = Dropping(between)
    compiled = torch.compile(
        model, backend="unitscale", dynamic=True, options={"recipe": "fp8", "inner": "eager"}
    )
    for size, rate in zip((8, 6, 5, 8), RATES, strict=True):
        compiled(torch.randn(size, 8), rate).backward()
    assert model.first.weight.grad.isfinite().all()


class Scheduled(nn.Sequential):
    """A model whose rates are attributes of its layers, as most have them."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 8))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:3]:
            x = layer(x)
        return self.attention(x, x, x)[0].square().mean() * 1e-3


def test_the_rate_of_a_layer_may_change() -> None:
    def trace(model: nn.Module):
        x, found = torch.randn(4, 2, 8), []
        torch.manual_seed(7)
        for rate in RATES:
            model[1].p = model.attention.dropout = rate
            model.zero_grad()
            loss = model(x)
            loss.backward()
            found += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
        torch._dynamo.reset()
        return found

    torch.manual_seed(0)
    plain = Scheduled()
    scaled = unit_scale(copy.deepcopy(plain), "fp32-units", inner="eager", remeasure=[0])
    plain.compile(backend="eager")
    torch.manual_seed(1)
    want = trace(plain)
    torch.manual_seed(1)
    torch.testing.assert_close(trace(scaled), want, rtol=0, atol=0)
    assert_written_out(scaled, "multi_head_attention_forward")


def test_dropout_of_a_rate_that_is_zero_leaves_the_graph() -> None:
    """A graph for this rate alone: three uses of the tensor are summed as in the plain model."""

    def used_thrice(model, x, p):
        y = F.dropout(x, p)
        return y.sin() * x + y * x.cos() + x

    rates = (0.5, 0.0, 0.25, 0.0, 0.0)
    _, want = traced(used_thrice, scale=False, rates=rates)
    _, got = traced(used_thrice, scale=True, rates=rates)
    assert_same_trace(got, want)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_a_cell_may_have_sizes_that_change(cell) -> None:
    torch.manual_seed(3)
    layer = cell(8, 8)
    compiled = torch.compile(
        layer, backend="unitscale", dynamic=True, options={"recipe": "fp8", "inner": "eager"}
    )
    for size in (8, 6, 5):
        states = compiled(torch.randn(size, 8))
        (states[0] if isinstance(states, tuple) else states).square().mean().backward()
    assert layer.weight_hh.grad.isfinite().all()


@pytest.mark.slow
def test_attention_with_a_number_of_heads_that_changes() -> None:
    """It stays one op, and says why: its shapes would have to be computed at every call."""

    def heads(model, x, count):
        layer, x = model.attention, x[:, None]
        return F.multi_head_attention_forward(
            *(x, x, x, 8, count, layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0),
            *(layer.out_proj.weight, layer.out_proj.bias),
        )[0][:, 0]

    counts = (2, 4, 1, 8)
    _, want = traced(heads, scale=False, rates=counts)
    model, got = traced(heads, scale=True, rates=counts)
    assert_same_trace(got, want)
    graphs = (executable.module.graph for executable in session_of(model).executables)
    reasons = {unexpanded_reason(node) for graph in graphs for node in graph.nodes}
    assert "num_heads changes between calls" in reasons


def recomputed(model, x, p):
    return checkpoint(lambda x, p: F.dropout(x.sin() * p, p), x, p, use_reentrant=False)


def recomputed_attention(model, x, p):
    return checkpoint(attention, model, x, p, use_reentrant=False)


@pytest.mark.parametrize("between", [recomputed, recomputed_attention])
def test_a_number_may_change_in_a_checkpoint(between) -> None:
    # Not compiled: the backend "eager" draws other numbers when it recomputes.
    _, want = traced(between, scale=False, plain=None)
    model, got = traced(between, scale=True)
    assert_same_trace(got, want)
    inputs = {row.name for row in rows(model) if row.op == "input"}
    assert inputs == {"x"}
