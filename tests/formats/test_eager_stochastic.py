"""In eager code on a CPU: the bits of the formulas, wherever a shorter way to them is taken."""

import math

import pytest
import torch
from torch import Tensor

from unitscale.formats import E2M1FN, E3M2FN, E4M3FN, E4M3FNUZ, E5M2, FP16, round_to, stochastic
from unitscale.formats.hashing import key_numbers, keys_of, random_int32
from unitscale.formats.kernel import Bits, Law

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (0, 1, stochastic.ROW - 1, stochastic.ROW, stochastic.ROW + 1, 5000)


def by_formula(x: Tensor, fmt, seed: int, saturate: bool = True, scale=None) -> Tensor:
    law = Law(fmt=fmt, rounding="stochastic", saturate=saturate, dtype=x.dtype)
    scale = None if scale is None else torch.tensor(scale)
    return law.rounded(x, Bits(keys_of(seed, CPU)), scale).to(x.dtype)


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    """Equal, the sign of zero included; NaN to NaN."""
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    numbers = ~want.isnan()
    assert torch.equal(got.signbit()[numbers], want.signbit()[numbers])


def test_assert_same_bits_sees_a_sign():
    zero = torch.zeros(2)
    assert_same_bits(zero, zero)
    for other in (-zero, zero.half(), zero + 1):
        with pytest.raises(AssertionError):
            assert_same_bits(zero, other)


def hard(length: int, dtype: torch.dtype, *, special: bool) -> Tensor:
    """Magnitudes over all exponents, and with `special` what is no number."""
    x = torch.randn(length) * 2.0 ** torch.randint(-30, 12, (length,))
    if special and length > 8:
        x[:8] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e30, -1e30, 2.0**-149])
        x[8] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # NaN of all ones
    return x.to(dtype)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, FP16, E2M1FN, E3M2FN, E4M3FNUZ], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("saturate", [False, True])
def test_bits_are_those_of_the_formula(fmt, dtype, special, saturate, monkeypatch):
    monkeypatch.setattr(stochastic, "SMALL", 2 * stochastic.ROW)
    for length in LENGTHS:
        x = hard(length, dtype, special=special)
        for seed in (0, -1, 2**63 + 5):
            got = round_to(x, fmt, "stochastic", saturate, seed=seed)
            assert_same_bits(got, by_formula(x, fmt, seed, saturate))


def test_in_place_and_scaled_and_in_every_shape(monkeypatch):
    monkeypatch.setattr(stochastic, "SMALL", stochastic.ROW)
    x = hard(6000, torch.float32, special=True).view(60, 100)
    want = by_formula(x, E4M3FN, 3, scale=0.3)
    assert_same_bits(round_to(x, E4M3FN, "stochastic", seed=3, inv_scale=0.3), want)
    copy = x.clone()
    assert round_to(copy, E4M3FN, "stochastic", seed=3, inv_scale=0.3, out=copy) is copy
    assert_same_bits(copy, want)
    spread = torch.stack([x, x], -1)[..., 0]
    assert_same_bits(round_to(spread, E4M3FN, "stochastic", seed=3, inv_scale=0.3), want)
    out = torch.zeros_like(spread.t()).t()
    assert_same_bits(round_to(x, E4M3FN, "stochastic", seed=3, inv_scale=0.3, out=out), want)


@pytest.mark.parametrize("start", [0, 512, 2**31 - 1024, 2**32 - 512, 2**33 + 512])
@pytest.mark.parametrize("length", [1, 512, 1500])
def test_hash_is_that_of_every_index(start, length):
    keys = keys_of(77, CPU)
    h, scratch = torch.empty(2, length, dtype=torch.int32).unbind()
    stochastic.hashed(keys.tolist(), start, h, scratch)
    assert torch.equal(h, random_int32(torch.Size([length]), keys, start))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62, -(2**63), 2**63 - 1])
def test_keys_in_python_are_those_of_the_tensor(seed):
    """A Parameter is not looked into, so it takes the way of tensors, as a traced seed does."""
    by_tensor = keys_of(torch.nn.Parameter(torch.tensor(seed), requires_grad=False), CPU)
    assert list(key_numbers(seed)) == by_tensor.tolist() == keys_of(seed, CPU).tolist()
