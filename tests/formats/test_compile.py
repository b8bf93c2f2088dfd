"""`round_to` inside graphs: one graph, the same bits, nothing optimized away."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from formats.oracle import assert_same, patterns
from unitscale.formats import E2M1FN, E4M3FN, E5M2, E8M0FNU, FP16, decode, encode, round_to

# torch 2.13 compiling warns of itself (November 2026).
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def inputs():
    """Every float16 and bfloat16 value: all ties, ends, NaN, Inf and -0 of the formats here."""
    return torch.cat([patterns(torch.float16).float(), patterns(torch.bfloat16).float()])


def assert_equal_in_graph(function, backend, x):
    expected = function(x)
    y = torch.compile(function, fullgraph=True, backend=backend)(x)
    assert_same(y, expected.double().numpy(), x)


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("mode", ["nearest", "toward_zero"])
@pytest.mark.parametrize("fmt", [E4M3FN, FP16], ids=str)
def test_one_graph_the_same_bits(fmt, mode, saturate):
    assert_equal_in_graph(lambda x: round_to(x, fmt, mode, saturate), "aot_eager", inputs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_one_graph_in_other_dtypes(dtype):
    assert_equal_in_graph(lambda x: round_to(x, FP16), "aot_eager", inputs().to(dtype))


def test_inductor_gives_the_same_bits():
    def all_of_them(x):
        return torch.stack([round_to(x, fmt) for fmt in (E4M3FN, E5M2, FP16, E8M0FNU)])

    assert_equal_in_graph(all_of_them, "inductor", inputs())


def test_inductor_drops_casts_and_so_we_do_not_use_them_in_graphs():
    """Should this fail, inductor has changed, and the exception in `_cast_is_exact` may go."""
    x = torch.randn(1000)
    by_cast = torch.compile(lambda x: x.half().float(), fullgraph=True)(x)
    assert torch.equal(by_cast, x)


def test_no_cast_is_recorded_by_a_tracer_either():
    """A backend traces opaque functions with FakeTensor, outside of Dynamo."""
    graph = make_fx(lambda x: round_to(x, FP16), tracing_mode="fake")(torch.randn(8))
    dtypes = {node.meta["val"].dtype for node in graph.graph.nodes if "val" in node.meta}
    assert torch.float16 not in dtypes
    x = inputs()
    assert_same(graph(x), round_to(x, FP16).double().numpy(), x)


def test_an_opaque_function_is_not_optimized_away():
    def opaque(x):
        return round_to(x, FP16)

    torch._dynamo.allow_in_graph(opaque)
    assert_equal_in_graph(lambda x: opaque(x) * 2, "inductor", inputs())


def test_stochastic_in_a_graph_stays_on_the_grid():
    x = torch.randn(1000)
    rounded = torch.compile(lambda x: round_to(x, E4M3FN, "stochastic"), fullgraph=True)
    y = rounded(x)
    assert torch.equal(round_to(y, E4M3FN), y)
    assert not torch.equal(y, rounded(x))


def test_in_place_in_a_graph():
    x = torch.randn(100)
    expected = round_to(x, E4M3FN)
    y = torch.compile(lambda x: round_to(x, E4M3FN, out=x), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(x, expected)
    assert torch.equal(y, expected)


def test_dynamic_shapes_do_not_recompile():
    counter = torch._dynamo.testing.CompileCounter()
    rounded = torch.compile(lambda x: round_to(x, E4M3FN), backend=counter, dynamic=True)
    for n in (5, 6, 7):
        rounded(torch.randn(n, 3))
    assert counter.frame_count == 1


def test_inside_an_autograd_function():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return round_to(x, E4M3FN)

        @staticmethod
        def backward(ctx, grad):
            return round_to(grad, E5M2)

    x = torch.randn(100, requires_grad=True)
    weight = torch.randn(100)
    compiled = torch.compile(lambda x: (Straight.apply(x) * weight).sum(), backend="aot_eager")
    compiled(x).backward()
    assert torch.equal(x.grad, round_to(weight, E5M2))


def test_fake_tensors():
    with FakeTensorMode():
        x = torch.empty(3, 4, dtype=torch.bfloat16)
        for mode in ("nearest", "toward_zero", "stochastic"):
            y = round_to(x, E4M3FN, mode)
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
        codes = encode(x, E2M1FN)
        assert codes.dtype == torch.uint8
        assert decode(codes, E2M1FN, torch.bfloat16).shape == x.shape


@pytest.mark.skipif(torch.__version__ < "2.13", reason="vmap has no rule for views of a dtype")
@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, FP16, E8M0FNU], ids=str)
def test_vmap(fmt):
    x = torch.randn(6, 5) * 100
    y = torch.vmap(lambda row: round_to(row, fmt, saturate=False))(x)
    assert_same(y, round_to(x, fmt, saturate=False).double().numpy(), x)


def test_assert_equal_in_graph_sees_a_difference():
    def function(x):
        return round_to(x, FP16) if torch.compiler.is_compiling() else x

    with pytest.raises(AssertionError, match="differ"):
        assert_equal_in_graph(function, "aot_eager", torch.tensor(np.float32([1.0001])))
