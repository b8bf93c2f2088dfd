"""The low-precision matrix product: rounded operands and results, saved in eight bits."""

from unitscale.gemm.attention import scaled_dot_product_attention
from unitscale.gemm.convolution import conv1d, conv2d, conv3d
from unitscale.gemm.derivative import first_order
from unitscale.gemm.executor import choose
from unitscale.gemm.formats import ProductFormats
from unitscale.gemm.operand import in_backward
from unitscale.gemm.product import addmm, linear, matmul
from unitscale.gemm.rounded import round_value, rounded

__all__ = [
    "ProductFormats",
    "addmm",
    "choose",
    "conv1d",
    "conv2d",
    "conv3d",
    "first_order",
    "in_backward",
    "linear",
    "matmul",
    "round_value",
    "rounded",
    "scaled_dot_product_attention",
]
