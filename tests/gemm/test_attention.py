"""Low-precision attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gemm.edges import (
    PRODUCT_FORMATS,
    assert_on_grid,
    assert_same_bits,
    product_at_edges,
    saved_bytes,
    values_and_gradients,
)
from unitscale import gemm

FP8 = PRODUCT_FORMATS["fp8"]
SHAPES = (2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8)


def additive_mask() -> Tensor:
    """A `finfo.min` mask, the first row of it fully masked."""
    mask = torch.zeros(5, 6)
    mask[0] = mask[2, 3:] = torch.finfo(torch.float32).min
    return mask


def options(name: str) -> dict:
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.25},
        "bool mask": {"attn_mask": torch.arange(30).view(5, 6) % 3 > 0},
        "additive mask": {"attn_mask": additive_mask()},
        "dropout": {"dropout_p": 0.5},
    }[name]


def compared(ours, plain, operands: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Both runs, with the same dropout."""
    results = []
    for product in (ours, plain):
        torch.manual_seed(2)
        results.append(values_and_gradients(product, operands))
    return results[0], results[1]


@pytest.mark.parametrize("name", ["fp8", "fp8-current", "fp16", "backward only"])
@pytest.mark.parametrize(
    "case", ["plain", "causal", "scale", "bool mask", "additive mask", "dropout"]
)
def test_attention_is_rounding_at_the_edges(case, name):
    operands = [torch.randn(shape) for shape in SHAPES]
    formats, extra = PRODUCT_FORMATS[name], options(case)

    def ours(*qkv: Tensor) -> Tensor:
        return gemm.scaled_dot_product_attention(*qkv, **extra, formats=formats)

    def plain(*qkv: Tensor) -> Tensor:
        attention = lambda *x: F.scaled_dot_product_attention(*x, **extra)
        return product_at_edges(attention, formats, *qkv)

    assert_same_bits(*compared(ours, plain, operands))


def test_grouped_queries_are_rounding_at_the_edges():
    operands = [torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)]

    def ours(*qkv: Tensor) -> Tensor:
        return gemm.scaled_dot_product_attention(*qkv, enable_gqa=True, formats=FP8)

    def plain(*qkv: Tensor) -> Tensor:
        attention = lambda *x: F.scaled_dot_product_attention(*x, enable_gqa=True)
        return product_at_edges(attention, FP8, *qkv)

    assert_same_bits(*compared(ours, plain, operands))


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_query_factor_multiplies_the_rounded_query(dropout_p):
    """Query and key held at 1/32 of their values: the logits see the true ones."""
    q, k, v = (torch.randn(shape) for shape in SHAPES)
    factor = torch.tensor(1024.0)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return gemm.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout_p, query_factor=factor, formats=FP8
        )

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention = lambda q, k, v: F.scaled_dot_product_attention(
            q * factor, k, v, None, dropout_p
        )
        return product_at_edges(attention, FP8, q, k, v)

    assert_same_bits(*compared(ours, plain, [q / 32, k / 32, v]))


def test_learned_mask_gets_its_gradient():
    operands = [torch.randn(shape) for shape in SHAPES]
    mask = torch.randn(5, 6)

    def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return gemm.scaled_dot_product_attention(q, k, v, mask, formats=FP8)

    def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        attention = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask)
        return product_at_edges(attention, FP8, q, k, v)

    got, want = compared(ours, plain, [*operands, mask])
    assert_same_bits(got, want)
    assert got[-1].count_nonzero() > 0


def test_values_and_gradients_are_on_their_grids():
    q, k, v = (torch.randn(shape) for shape in SHAPES)
    for value in values_and_gradients(
        lambda *x: gemm.scaled_dot_product_attention(*x, formats=PRODUCT_FORMATS["fp16"]), [q, k, v]
    ):
        assert_on_grid(value, "FP16")


# q and k of the logits, and v: relative error against float64. Rounding v to E4M3FN alone costs
# 0.0265, the gradient to E5M2 alone 0.0526; the softmax of wrong logits adds to both.
def test_errors_are_those_of_the_formats():
    operands = [torch.randn(2, 4, 64, 16) for _ in range(3)]
    got = values_and_gradients(
        lambda *x: gemm.scaled_dot_product_attention(*x, formats=FP8), operands
    )
    true = values_and_gradients(F.scaled_dot_product_attention, [x.double() for x in operands])
    output, *gradients = ((a - b).norm() / b.norm() for a, b in zip(got, true, strict=True))
    assert 0.0265 < output < 0.0526
    for error in gradients:
        assert 0.0526 < error < 0.09


@pytest.mark.parametrize(("name", "size"), [("fp8", 1), ("fp16", 2), ("backward only", 4)])
def test_saved_for_backward_is_in_the_formats_own_bytes(name, size):
    """Query, key and value only: no output, no logits, no log-sum."""
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in SHAPES)
    formats = PRODUCT_FORMATS[name]
    saved = saved_bytes(lambda: gemm.scaled_dot_product_attention(q, k, v, formats=formats))
    assert saved == size * sum(x.numel() for x in (q, k, v))
