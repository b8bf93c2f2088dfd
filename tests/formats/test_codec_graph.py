"""Codecs inside graphs and under vmap: one graph, the same bits, nothing lost at the end."""

from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from formats.codec_oracle import hard_rows
from marks import all_but
from unitscale.formats import (
    E2M1FN,
    E4M3FN,
    E5M2,
    FP16,
    MX_E2M1FN,
    MX_E4M3FN,
    NVFP4,
    Codec,
    PerAxis,
    PerBlock,
    PerTile,
    decode,
    dequantize_blocks,
    encode,
    quantize_blocks,
    round_to,
    round_to_blocks,
)

# torch 2.13 compiling warns of itself (November 2026).
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

CODECS = [
    Codec(format=E4M3FN),
    Codec(format=FP16),
    Codec(format=E5M2, granularity=PerAxis(), power_of_two="rceil", margin=3),
    Codec(format=E4M3FN, granularity=PerBlock(128)),
    Codec(format=E4M3FN, granularity=PerBlock(16, 0), power_of_two="ceil"),
    Codec(format=E4M3FN, granularity=PerTile(16, 16), power_of_two="even"),
    Codec(format=MX_E4M3FN),
    Codec(format=MX_E2M1FN, granularity=PerTile(32, 32), power_of_two="rceil"),
    Codec(format=NVFP4),
    Codec(format=NVFP4, granularity=PerTile(16, 16)),
]
QUICK = [CODECS[i] for i in (0, 1, 6, 8)]
each_codec = pytest.mark.parametrize("codec", all_but(CODECS, QUICK.__contains__), ids=str)


def everything(codec):
    """All methods of a codec, as one function of a tensor."""

    def function(x):
        grid, packed = codec.grid(x), codec.encode(x)
        data = packed.data.float()
        # Consumers in the same graph, which Inductor fuses with what they read.
        decoded = codec.decode(packed)
        return grid.data, grid.scale, data, decoded, codec.round(x), decoded[..., :40] * 2

    return function


def some_rows():
    """Of 70 columns: short blocks, zeros, subnormals, and a group that is NaN."""
    x = hard_rows(70, 40, E2M1FN)
    return torch.where(x.abs() > 1e6, x * 2.0**-100, x)


def assert_same_results(got, expected):
    for y, wanted in zip(got, expected, strict=True):
        assert y.dtype == wanted.dtype
        assert torch.equal(y.nan_to_num(-7.0), wanted.nan_to_num(-7.0))


@each_codec
def test_one_graph_the_same_bits(codec):
    function, x = everything(codec), some_rows()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same_results(compiled(x), function(x))


@pytest.mark.parametrize("codec", all_but(CODECS, CODECS[6].__eq__), ids=str)
def test_inductor_gives_the_same_bits(codec):
    function, x = everything(codec), some_rows()
    assert_same_results(torch.compile(function, fullgraph=True)(x), function(x))


@each_codec
def test_fake_tensors_and_a_tracer(codec):
    """A backend traces opaque functions with FakeTensor, outside of Dynamo."""
    function, x = everything(codec), some_rows()
    graph = make_fx(function, tracing_mode="fake")(x)
    assert_same_results(graph(x), function(x))


def test_a_graph_for_any_number_of_rows():
    codec = Codec(format=MX_E4M3FN, power_of_two="rceil")
    rounded = torch.compile(codec.round, fullgraph=True, backend="aot_eager")
    for count in (3, 8, 17):
        x = torch.randn(count, 70)
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(rounded(x), codec.round(x))


def test_given_scales_in_a_graph():
    for codec, given in (
        (CODECS[0], {"scale": torch.tensor(0.25)}),
        (CODECS[0], {"scale": 0.25}),
        (CODECS[3], {"scale": torch.rand(40, 1) + 1}),
        (CODECS[6], {"scale": torch.tensor(0.25)}),
        (CODECS[8], {"tensor_scale": torch.tensor(2.0**-8)}),
    ):
        x = torch.randn(40, 70)

        def function(x, codec=codec, given=given):
            return codec.round(x, **given)

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), function(x))


def test_given_numbers_in_a_tracer():
    x = torch.randn(40, 70)
    for codec, given in ((CODECS[0], {"scale": 0.25}), (CODECS[8], {"tensor_scale": 0.25})):
        graph = make_fx(partial(codec.round, **given), tracing_mode="fake")(x)
        assert torch.equal(graph(x), codec.round(x, **given))


def test_stochastic_in_a_graph_takes_the_same_seed():
    codec = Codec(format=NVFP4, rounding="stochastic")
    x = torch.randn(40, 70)
    compiled = torch.compile(codec.round, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, seed=torch.tensor(3)), codec.round(x, seed=3))


@each_codec
def test_lanes_of_vmap_are_tensors_of_their_own(codec):
    x = torch.randn(3, 40, 70)
    assert torch.equal(torch.func.vmap(codec.round)(x), torch.stack([*map(codec.round, x)]))


@each_codec
def test_batched_gradients(codec):
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return codec.round(grad)

    x, grads = torch.randn(40, 70, requires_grad=True), torch.randn(3, 40, 70)
    (got,) = torch.autograd.grad(Backward.apply(x), x, grads, is_grads_batched=True)
    assert torch.equal(got, torch.stack([*map(codec.round, grads)]))


def assert_each_is_compiled(compiled, function, things, x):
    """One compiled function for several formats gives what the function does for each."""
    for thing in things:
        assert_same_results([compiled(x, thing)], [function(x, thing)])


@pytest.mark.slow
def test_one_compiled_function_for_several_codecs():
    """Dynamo takes a number that has changed for a symbol; those of a format are none."""
    function = lambda x, codec: codec.decode(codec.encode(x)) + codec.round(x)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_each_is_compiled(compiled, function, CODECS[:4] + CODECS[6:9], some_rows())
    again = Codec(format=FP16)  # equal to the second, and another object
    assert_each_is_compiled(compiled, function, [again], some_rows())


def test_one_compiled_function_for_several_formats():
    x = some_rows()
    cases = {
        (E4M3FN, E5M2, FP16, E2M1FN): lambda x, fmt: round_to(x, fmt),
        (E4M3FN, E5M2, E2M1FN): lambda x, fmt: decode(encode(x, fmt), fmt),
        (MX_E4M3FN, NVFP4, MX_E2M1FN): lambda x, fmt: round_to_blocks(x, fmt),
        (NVFP4, MX_E4M3FN): lambda x, fmt: dequantize_blocks(quantize_blocks(x, fmt)),
    }
    for formats, function in cases.items():
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_each_is_compiled(compiled, function, formats, x)


def test_assert_each_is_compiled_sees_a_format_that_is_taken_for_another():
    first = lambda x, _: round_to(x, E4M3FN)
    with pytest.raises(AssertionError):
        assert_each_is_compiled(first, round_to, [E4M3FN, E2M1FN], some_rows())


def test_a_closure_of_another_codec_is_compiled_again():
    x = some_rows()

    def rounding(codec):
        return lambda x: codec.round(x)

    for codec in CODECS[:3]:
        function = rounding(codec)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same_results([compiled(x)], [function(x)])
