"""`compiled=True`: the bits of eager code, for every mode, dtype, size and way of calling."""

import numpy as np
import pytest
import torch

from formats.oracle import assert_same, patterns, table
from unitscale.formats import (
    E2M1FN,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E8M0FNU,
    FP16,
    FP32,
    TF32,
    encode,
    fused,
    round_to,
    rounding,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_kernels():
    """Dynamo forgets what it compiled after each test, so kernels must not outlive it."""
    yield
    fused._kernel.cache_clear()


def inputs():
    """Every float16 and bfloat16 value, and a few more: no multiple of a row."""
    few = torch.linspace(-500, 500, 7)
    return torch.cat([patterns(torch.float16).float(), patterns(torch.bfloat16).float(), few])


CASES = [
    (E4M3FN, "nearest", True),
    (E4M3FN, "nearest", False),
    (E5M2, "nearest", False),
    (E4M3FNUZ, "nearest", True),
    (E2M1FN, "nearest", True),
    (E8M0FNU, "nearest", True),
    (TF32, "nearest", False),
    (E5M2, "toward_zero", True),
    (E4M3FN, "stochastic", True),
    (E5M2, "stochastic", False),
    (FP16, "stochastic", True),
]


@pytest.mark.parametrize(("fmt", "mode", "saturate"), CASES)
def test_compiled_gives_the_bits_of_eager(fmt, mode, saturate):
    x = inputs()
    options = {"seed": 7} if mode == "stochastic" else {}
    expected = round_to(x, fmt, mode, saturate, **options)
    y = round_to(x, fmt, mode, saturate, compiled=True, **options)
    assert_same(y, expected.double().numpy(), x)
    if mode != "stochastic" and fmt.bits <= 16:
        exact = x.double().numpy()
        assert_same(y, table(exact, fmt, rounding=mode, saturate=saturate), x)
    assert fused._kernel.cache_info().currsize == 1


def test_in_place_and_out():
    x = inputs()
    expected = round_to(x, E4M3FN)
    out = torch.empty_like(x)
    assert round_to(x, E4M3FN, out=out, compiled=True) is out
    assert_same(out, expected.double().numpy(), x)
    given = x.clone()
    assert round_to(x, E4M3FN, out=x, compiled=True) is x
    assert_same(x, expected.double().numpy(), given)


@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
def test_scaled_in_the_same_pass(mode):
    """A third is no power of two: the product is rounded to float32, once."""
    x = inputs()
    options = {"seed": 1} if mode == "stochastic" else {}
    third = torch.tensor(1 / 3)
    expected = round_to(x * third, E4M3FN, mode, **options)
    for inv_scale in (1 / 3, third, third.reshape(1, 1)):
        y = round_to(x, E4M3FN, mode, inv_scale=inv_scale, **options)
        assert_same(y, expected.double().numpy(), x)
    y = round_to(x, E4M3FN, mode, inv_scale=third, compiled=True, **options)
    assert_same(y, expected.double().numpy(), x)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, E2M1FN], ids=str)
def test_packed_in_the_same_pass(fmt):
    x = inputs()
    for options in ({}, {"rounding": "stochastic", "seed": 3, "inv_scale": 0.5}):
        expected = encode(x, fmt, **options)
        assert torch.equal(encode(x, fmt, compiled=True, **options), expected)
        codes = torch.empty(x.shape, dtype=torch.uint8)
        assert encode(x, fmt, out=codes, compiled=True, **options) is codes
        assert torch.equal(codes, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    x = patterns(dtype) if dtype != torch.float64 else patterns(torch.float16).double() * 1.0001
    for mode, options in (("nearest", {}), ("stochastic", {"seed": 2})):
        expected = round_to(x, E4M3FN, mode, **options)
        y = round_to(x, E4M3FN, mode, compiled=True, **options)
        assert y.dtype == dtype
        assert_same(y, expected.double().numpy(), x)


def test_one_kernel_serves_every_size():
    for n in (2**16, 2**16 + 31, 2**17):
        x = torch.randn(n)
        assert torch.equal(round_to(x, E4M3FN, compiled=True), round_to(x, E4M3FN))
    (kernel,) = [fused._kernel(*arguments) for arguments in [key_of(E4M3FN)]]
    assert fused._kernel.cache_info().currsize == 1
    code = kernel._torchdynamo_orig_callable.__code__
    assert len(torch._dynamo.eval_frame._debug_get_cache_entry_list(code)) == 1


def key_of(fmt):
    law = rounding.Law(fmt=fmt, rounding="nearest", saturate=True, dtype=torch.float32)
    return law, False, False


def test_more_formats_than_dynamos_limit():
    """Each kernel counts its recompilations for itself."""

    def adder(number):
        def add(x):
            return x + number

        return fused.compiled(add)

    for number in range(torch._dynamo.config.recompile_limit + 1):
        assert adder(number)(torch.zeros(1)).item() == number


def test_nothing_is_compiled_unasked_or_for_small_or_strided_tensors():
    x = torch.randn(2**17)
    round_to(x, E4M3FN)
    round_to(x[:1000], E4M3FN, compiled=True)
    y = round_to(x.view(2, -1).t(), E4M3FN, compiled=True)
    assert torch.equal(y, round_to(x.view(2, -1).t(), E4M3FN))
    assert fused._kernel.cache_info().currsize == 0


def test_what_dynamo_sees_of_the_argument_is_nothing():
    def both(x):
        return round_to(x, E4M3FN, compiled=True)

    x = inputs()
    y = torch.compile(both, fullgraph=True, backend="aot_eager")(x)
    assert_same(y, round_to(x, E4M3FN).double().numpy(), x)


def test_a_seed_in_a_graph_gives_the_bits_of_eager():
    def function(x, seed):
        return round_to(x, E4M3FN, "stochastic", seed=seed)

    seed = torch.tensor(-5)
    for n in (96, 97):  # whole rows and not
        x = torch.randn(n, 3)
        expected = function(x, seed)
        for backend in ("aot_eager", "inductor"):
            torch._dynamo.reset()
            y = torch.compile(function, fullgraph=True, backend=backend, dynamic=False)(x, seed)
            assert torch.equal(y, expected)
    assert torch.equal(function(x, -5), expected)


def test_an_output_with_history_raises_as_ever():
    x = torch.randn(2**16)
    out = torch.empty(2**16, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        round_to(x, E4M3FN, out=out, compiled=True)


# Large tensors in eager code are rounded in pieces.


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, FP16, E8M0FNU, FP32], ids=str)
@pytest.mark.parametrize("how", ["nearest", "toward_zero", "seed", "generator"])
def test_pieces_give_the_bits_of_the_whole(fmt, how, monkeypatch):
    x = torch.randn(1000)
    results = []
    for piece in (10_000, 64):
        monkeypatch.setattr(rounding, "PIECE", piece)
        options = {
            "seed": {"seed": 5, "rounding": "stochastic"},
            "generator": {
                "generator": torch.Generator().manual_seed(5),
                "rounding": "stochastic",
            },
        }.get(how, {"rounding": how})
        results.append(round_to(x, fmt, **options))
        assert results[-1].data_ptr() != x.data_ptr()
    assert_same(results[1], results[0].double().numpy(), x)
    if how == "nearest" and fmt.bits <= 8:
        monkeypatch.setattr(rounding, "PIECE", 10_000)
        whole = encode(x, fmt)
        monkeypatch.setattr(rounding, "PIECE", 64)
        assert torch.equal(encode(x, fmt), whole)


def test_pieces_in_place(monkeypatch):
    monkeypatch.setattr(rounding, "PIECE", 64)
    x = torch.randn(1000)
    expected = round_to(x, E4M3FN)
    assert round_to(x, E4M3FN, out=x) is x
    assert torch.equal(x, expected)


def test_a_kernel_that_does_not_round_is_noticed(monkeypatch):
    monkeypatch.setattr(fused, "apply", lambda law, x, *_, **__: x.clone())
    x = inputs()
    y, expected = round_to(x, E4M3FN, compiled=True), round_to(x, E4M3FN)
    with pytest.raises(AssertionError, match="differ"):
        assert_same(y, expected.double().numpy(), x)


# Wrong calls.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "a seed is of no use for rounding='nearest'"),
        (
            {"rounding": "stochastic", "seed": 1, "generator": torch.Generator()},
            "a generator and a seed exclude each other",
        ),
        (
            {"rounding": "stochastic", "generator": torch.Generator(), "compiled": True},
            "a generator and compiled=True exclude each other",
        ),
        ({"inv_scale": torch.ones(3)}, r"inv_scale has shape \(3,\); expected one element"),
    ],
)
def test_arguments_that_do_not_go_together(options, message):
    for function in (round_to, encode):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(3), E4M3FN, **options)


def test_scaled_into_a_dtype_that_does_not_hold_the_format():
    x = torch.zeros(3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"FP16, whose values torch.bfloat16 does not hold"):
        round_to(x, FP16, inv_scale=2.0)


def test_unfit_codes_are_refused():
    with pytest.raises(ValueError, match=r"out is torch.int8 \(3,\); expected uint8 \(3,\)"):
        encode(torch.zeros(3), E4M3FN, out=torch.zeros(3, dtype=torch.int8))


def test_scale_keeps_narrow_inputs_from_rounding_twice():
    x = torch.tensor([1.0078125], dtype=torch.bfloat16)
    y = round_to(x, E4M3FN, inv_scale=1.0625 / 1.0078125 + 1e-6)
    assert y.item() == 1.125  # the product in bfloat16 would be the tie 1.0625, and go to 1
    assert np.isclose(float(x) * (1.0625 / 1.0078125), 1.0625)
