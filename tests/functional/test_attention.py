from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unitscale.functional as U


def heads(batch: int, count: int, length: int, size: int) -> Tensor:
    return torch.randn(batch, count, length, size)


def harmonic(n: int) -> float:
    return n / sum(1 / i for i in range(1, n + 1))


@pytest.mark.parametrize("size", [16, 256, 4096])
def test_softmax_is_unit_for_short_and_long_rows(size: int) -> None:
    x = torch.randn(2**20 // size, size, requires_grad=True)
    y = U.softmax(x, -1, center="std", constraint=None)
    y.backward(torch.randn_like(y))
    # 256 rows or more of a heavy-tailed sum: five standard errors of one row's spread of 0.3.
    assert y.std().item() == pytest.approx(1, rel=5 * 0.3 / x.shape[0] ** 0.5 + 0.01)
    assert x.grad.square().mean().sqrt().item() == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("size", [16, 256])
@pytest.mark.parametrize("mult", [1 / 8, 1.0, 2.0])
@pytest.mark.parametrize("softmax", [U.softmax, U.softmin])
def test_a_product_with_softmax_is_unit(softmax: Any, size: int, mult: float) -> None:
    """The mean of the rows counts, too: a product adds it up. By the spread alone it would not."""
    x, v = torch.randn(512, 64, size), torch.randn(512, size, 64)
    y = U.matmul(softmax(x, -1, mult=mult), v)
    # Rows of v that all queries nearly share: 512 * 64 independent numbers at least, in whose mean
    # square five standard errors are 4 %, 2 % in its root; and a spread of rows that is as small.
    assert y.square().mean().sqrt().item() == pytest.approx(1, rel=0.03)
    by_spread = U.matmul(softmax(x, -1, mult=mult, center="std"), v)
    assert by_spread.square().mean().sqrt() > 1.005


def test_softmax_of_one_number_is_one_as_in_torch() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    for dim in (0, -1):
        for ours, theirs in ((U.softmax, F.softmax), (U.softmin, F.softmin)):
            assert torch.equal(ours(x, dim), theirs(x, dim))
    for call in (lambda: U.softmax(x, 1), lambda: U.softmax(torch.ones(2, 3), 2)):
        with pytest.raises(IndexError, match="Dimension out of range"):
            call()


def test_softmax_takes_dtype_mult_and_center() -> None:
    x = torch.randn(64, 256)
    assert U.softmax(x.bfloat16(), -1, torch.float32).dtype == torch.float32
    y = U.softmax(x, -1, mult=2.0)
    torch.testing.assert_close(y / y.sum(-1, keepdim=True), F.softmax(2 * x, -1))
    assert torch.equal(U.softmax(x, -1, center="rms"), U.softmax(x, -1))
    assert U.softmax(x, -1, center="std").square().mean() > U.softmax(x, -1).square().mean()
    with pytest.raises(TypeError, match=r"softmax: input has dtype torch\.int64"):
        U.softmax(x.long(), -1)


@pytest.mark.parametrize("length", [64, 512, 2048])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_is_unit_at_every_length(length: int, is_causal: bool) -> None:
    """The existing library's fit is off by up to 11 % over these lengths."""
    q, k, v = (heads(1, 32, length, 16) for _ in range(3))
    y = U.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    # Nearly uniform weights average all values to the same 512 numbers: 5 / sqrt(2 * 512).
    assert y.square().mean().sqrt().item() == pytest.approx(1, rel=5 / 1024**0.5)


def test_early_positions_are_larger_under_a_causal_mask() -> None:
    """The stated limit: unit scale holds pooled over positions only."""
    q, k, v = (heads(4, 8, 256, 16) for _ in range(3))
    y = U.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert y[:, :, 0].std() > 4
    assert y[:, :, -1].std() < 0.7


def test_correlated_values_are_larger() -> None:
    """The stated limit: sqrt(1 - rho + rho n) for values of correlation rho."""
    q, k, v = (heads(4, 8, 256, 64) for _ in range(3))
    rho = 0.1
    v = (1 - rho) ** 0.5 * v + rho**0.5 * heads(4, 8, 1, 64)
    y = U.scaled_dot_product_attention(q, k, v)
    # 2048 independent means: five standard errors are 8 %.
    assert y.std().item() == pytest.approx((1 - rho + rho * 256) ** 0.5, rel=0.08)


def test_default_scale_is_that_of_umup_and_scale_is_torchs() -> None:
    q, k, v = (heads(2, 4, 32, 16) for _ in range(3))
    ours = U.scaled_dot_product_attention(q, k, v, mult=2.0)
    ratio = ours / F.scaled_dot_product_attention(q, k, v, scale=2.0 / 16)
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4, atol=0)
    torch.testing.assert_close(ours, U.scaled_dot_product_attention(q, k, v, scale=2.0 / 16))


def test_a_causal_mask_given_as_a_mask_equals_is_causal_with_its_number_of_keys() -> None:
    q, k, v = (heads(2, 4, 64, 16).double() for _ in range(3))
    mask = torch.ones(64, 64, dtype=torch.bool).tril()
    ours = U.scaled_dot_product_attention(q, k, v, mask, num_attended=harmonic(64))
    # The harmonic count is exact for uniform weights; logits of std 1/4 move it by less.
    causal = U.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, causal, rtol=0.02, atol=0)


def test_decoding_with_a_cache_gives_the_outputs_of_training() -> None:
    """The existing library's factor follows the current length, and decoding drifts from it."""
    q, k, v = (heads(2, 4, 48, 16) for _ in range(3))
    attended = harmonic(48)
    whole = U.scaled_dot_product_attention(q, k, v, is_causal=True, num_attended=attended)
    steps = [
        U.scaled_dot_product_attention(
            q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], num_attended=attended
        )
        for t in range(48)
    ]
    torch.testing.assert_close(torch.cat(steps, 2), whole)


def test_dropout_is_off_in_evaluation_and_its_factor_stays() -> None:
    q, k, v = (heads(64, 4, 16, 8) for _ in range(3))
    dropped = U.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    assert dropped.square().mean().sqrt().item() == pytest.approx(1, rel=0.05)
    evaluated = U.scaled_dot_product_attention(q, k, v, dropout_p=0.5, training=False)
    torch.testing.assert_close(evaluated, U.scaled_dot_product_attention(q, k, v) * 0.5**0.5)


def test_grouped_queries_equal_repeated_keys() -> None:
    q, k, v = heads(2, 8, 32, 16), heads(2, 2, 32, 16), heads(2, 2, 32, 16)
    grouped = U.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    repeated = [x.repeat_interleave(4, 1) for x in (k, v)]
    torch.testing.assert_close(grouped, U.scaled_dot_product_attention(q, *repeated))


def test_cross_attention_gradients_are_unit_without_constraint() -> None:
    q, k, v = heads(4, 8, 512, 32), heads(4, 8, 64, 32), heads(4, 8, 64, 32)
    for x in (q, k, v):
        x.requires_grad_()
    y = U.scaled_dot_product_attention(q, k, v, constraint=None)
    y.backward(torch.randn_like(y))
    for x in (q, k, v):  # 4 * 8 * 32 shared means at least: five standard errors are 11 %
        assert x.grad.square().mean().sqrt().item() == pytest.approx(1, rel=0.11)


def test_query_and_key_gradients_are_small_under_the_constraint() -> None:
    """The stated limit: mult / sqrt(head_dim)."""
    q, k, v = (heads(4, 8, 256, 64).requires_grad_() for _ in range(3))
    y = U.scaled_dot_product_attention(q, k, v)
    y.backward(torch.randn_like(y))
    for x in (q, k):
        assert x.grad.square().mean().sqrt().item() == pytest.approx(1 / 8, rel=0.05)


X = torch.zeros(2, 4, 8, 16)


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        ((X.long(), X, X), {}, TypeError, r"query has dtype torch\.int64"),
        ((X[..., :8], X, X), {}, ValueError, r"\[2, 4, 8, 8\], key \[2, 4, 8, 16\].*head_dim"),
        ((X, X, X[:, :, :5]), {}, ValueError, r"value \[2, 4, 5, 16\]; expected .* one length"),
        ((X[0, 0, 0], X, X), {}, ValueError, r"shape \[16\].*expected \[..., heads, length"),
        (
            (X, X[:, :3], X[:, :3]),
            {"enable_gqa": True},
            ValueError,
            r"key \[2, 3, 8, 16\].*multiple of the key's heads",
        ),
        ((X, X, X), {"scale": 0.5, "mult": 2.0}, ValueError, r"scale=0\.5 and mult=2\.0"),
        ((X, X, X), {"dropout_p": 1.5}, ValueError, r"dropout_p is 1\.5"),
        ((X, X, X), {"constraint": "to_grad_input_scale"}, ValueError, r"has 3"),
    ],
)
def test_a_wrong_call_says_value_and_expectation(
    tensors: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        U.scaled_dot_product_attention(*tensors, **options)
