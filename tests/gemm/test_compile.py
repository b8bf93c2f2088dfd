"""The products under torch.compile: the same bits."""

import pytest
import torch
from torch import Tensor, nn

from gemm.edges import PRODUCT_FORMATS, assert_same_bits, saved_bytes, values_and_gradients
from marks import slow
from unitscale import gemm
from unitscale.gemm import ProductFormats, rounded

# 2026-11-24: torch 2.13's Dynamo instantiates the Function that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class Chain(nn.Module):
    """One of each product, and rounding alone."""

    def __init__(self, formats: ProductFormats) -> None:
        super().__init__()
        self.formats = formats

    def forward(self, x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
        formats = self.formats
        hidden = gemm.linear(x, weight, formats=formats)
        mixed = gemm.matmul(hidden, hidden.mT, formats=formats)
        heads = hidden.unsqueeze(1)
        attended = gemm.scaled_dot_product_attention(heads, heads, heads, formats=formats)
        convolved = gemm.conv1d(hidden, kernel, formats=formats)
        total = rounded(attended.squeeze(1) + convolved, formats.x_output, formats.g_grad_input)
        return (mixed @ total).float()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8", torch.float32),
        ("fp8-current", torch.bfloat16),
        slow("fp8", torch.bfloat16),
        slow("fp8 by bf16", torch.float32),
        slow("fp8 by scaled_mm", torch.float32),
        slow("fp8-current by scaled_mm", torch.bfloat16),
    ],
)
def test_aot_eager_gives_the_same_bits(name, dtype):
    chain = Chain(PRODUCT_FORMATS[name])
    shapes = (2, 6, 8), (8, 8), (6, 6, 1)
    operands = [torch.randn(shape, dtype=dtype) for shape in shapes]
    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
    assert_same_bits(
        values_and_gradients(compiled, operands), values_and_gradients(chain, operands)
    )


@pytest.mark.parametrize("name", ["fp8", "fp8 by bf16", "fp8 by scaled_mm"])
def test_inductor_gives_the_same_bits(name):
    """Rounding is exact, so a fused kernel rounds as the cast does."""
    formats = PRODUCT_FORMATS[name]

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return gemm.linear(x, weight, formats=formats)

    operands = [torch.randn(8, 16) * 100, torch.randn(4, 16)]
    operands[0][0, 0] = 1e4
    compiled = torch.compile(product, fullgraph=True)
    assert_same_bits(
        values_and_gradients(compiled, operands), values_and_gradients(product, operands)
    )


def test_auto_is_settled_while_tracing():
    formats = PRODUCT_FORMATS["fp8"]._replace(executor="auto")
    operands = [torch.randn(8, 16), torch.randn(4, 16)]
    product = lambda x, weight: gemm.linear(x, weight, formats=formats)
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    assert_same_bits(
        values_and_gradients(compiled, operands), values_and_gradients(product, operands)
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8", torch.float32),
        slow("fp8", torch.bfloat16),
        ("fp8 by bf16", torch.float32),
        ("fp8 by scaled_mm", torch.bfloat16),
    ],
)
def test_partitioner_keeps_eight_bits(name, dtype):
    """Of a chain of products; what goes in is kept as it is by neither."""
    formats = PRODUCT_FORMATS[name]

    def chain(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        hidden = gemm.linear(x, first, formats=formats)
        return gemm.linear(hidden, second, formats=formats)

    shapes = (64, 48), (32, 48), (16, 32)
    operands = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    # The partitioner of inductor, without its kernels.
    compiled = torch.compile(chain, backend="aot_eager_decomp_partition", fullgraph=True)
    compiled(*operands)
    scale = 4 if formats.executor == "scaled_mm" else 0  # the 1 of operands without a scale
    saved = saved_bytes(lambda: compiled(*operands))
    assert saved == 64 * 48 + 32 * 48 + 64 * 32 + 16 * 32 + scale
