import math

import pytest
import torch
import torch.nn.functional as F

from scaling.measure import assert_unit
from unitscale.scaling.factors import attention_factors, log_softmax_factors, softmax_factors


@pytest.mark.parametrize("size", [2, 16, 256, 4096])
@pytest.mark.parametrize("mult", [0.5, 1.0, 3.0])
def test_softmax_is_unit_for_short_and_long_rows(size, mult):
    """5 % : heavy tails at mult 3 leave few entries that count."""
    got = softmax_factors(size, mult=mult, center="std")
    call = lambda x: torch.softmax(mult * x, -1)
    x = torch.randn(2**20 // size + 256, size)
    assert_unit(call, (x,), got.output_scale, (got.grad_input_scale,), rel=0.05)
    rms = softmax_factors(size, mult=mult)
    assert_unit(call, (x,), rms.output_scale, (rms.grad_input_scale,), rel=0.05, center="rms")


def test_softmax_of_long_rows_has_the_asymptotic_factors():
    got = softmax_factors(2**20, center="std")
    assert got.output_scale == pytest.approx(2**20 / math.sqrt(math.e - 1), rel=1e-3)
    assert got.grad_input_scale == pytest.approx(2**20 / math.sqrt(math.e), rel=1e-3)


def test_softmax_of_one_entry_is_left_alone():
    assert softmax_factors(1).output_scale == softmax_factors(1).grad_input_scale == 1


def test_log_softmax_is_unit():
    got = log_softmax_factors()
    call = lambda x: F.log_softmax(x, -1)
    x = torch.randn(256, 512)
    assert_unit(call, (x,), got.output_scale, (got.grad_input_scale,), rel=0.03)


CASES = [
    {"size": 64, "head_dim": 64, "mult": 1.0},
    {"size": 256, "head_dim": 64, "mult": 1.0, "is_causal": True},
    {"size": 256, "head_dim": 64, "mult": 8.0},
    {"size": 256, "head_dim": 16, "mult": 4.0, "is_causal": True},
    {"size": 128, "head_dim": 16, "mult": 16.0},
    {"size": 128, "head_dim": 32, "scale": 32**-0.5, "is_causal": True},
    {"size": 128, "head_dim": 32, "mult": 1.0, "dropout_p": 0.4},
]


def draw(size, head_dim, heads=16, batch=2):
    return torch.randn(batch, heads, size, head_dim)


@pytest.mark.parametrize("case", CASES)
def test_attention_is_unit_without_constraint(case):
    """8 %: logits of one query share its norm, and a few rows dominate at a large mult."""
    case = dict(case)
    size, head_dim = case.pop("size"), case.pop("head_dim")
    got = attention_factors(size, head_dim, **case)
    causal, dropout = case.get("is_causal", False), case.get("dropout_p", 0.0)
    call = lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, scale=got.logit_scale, is_causal=causal, dropout_p=dropout
    )
    grads = (got.grad_query_scale, got.grad_key_scale, got.grad_value_scale)
    inputs = tuple(draw(size, head_dim) for _ in range(3))
    assert_unit(call, inputs, got.output_scale, grads, rel=0.08)


def test_grouped_queries_and_cross_attention_are_unit():
    got = attention_factors(64, 32, query_size=128, num_query_heads=16, num_key_heads=4)
    call = lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, scale=got.logit_scale, enable_gqa=True
    )
    inputs = (draw(128, 32), draw(64, 32, heads=4), draw(64, 32, heads=4))
    grads = (got.grad_query_scale, got.grad_key_scale, got.grad_value_scale)
    assert_unit(call, inputs, got.output_scale, grads, rel=0.08)
    plain = attention_factors(64, 32)
    assert got.grad_key_scale == pytest.approx(plain.grad_key_scale / math.sqrt(2 * 4))
    assert got.output_scale == plain.output_scale


def test_flat_causal_attention_follows_harmonic_numbers():
    size = 512
    harmonic = sum(1 / i for i in range(1, size + 1))
    got = attention_factors(size, 4096, is_causal=True).output_scale
    assert got == pytest.approx((harmonic / size) ** -0.5, rel=1e-3)
    assert attention_factors(size, 4096).output_scale == pytest.approx(size**0.5, rel=1e-3)


def test_attention_to_one_key_is_the_value():
    got = attention_factors(1, 64)
    assert got.output_scale == pytest.approx(1, rel=1e-4)
    assert got.grad_query_scale == 1


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"dropout_p is 1\.0"):
        attention_factors(8, 8, dropout_p=1.0)
    with pytest.raises(ValueError, match="logit scale is 0"):
        attention_factors(8, 8, scale=0.0)
    with pytest.raises(ValueError, match=r"mult is -1\.0, expected a positive number"):
        softmax_factors(8, mult=-1.0)
    with pytest.raises(ValueError, match="center is 'mean'"):
        softmax_factors(8, center="mean")
