"""The low-precision matrix product: rounded operands and results, saved in eight bits."""

import warnings
from typing import Any

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


def __getattr__(name: str) -> Any:
    """`quantize` and `Quantized` of a version before `formats.Codec`, with a warning."""
    if name not in ("quantize", "Quantized"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    now = "Encoded" if name == "Quantized" else "Codec(...).encode"
    warnings.warn(
        f"unitscale.gemm.{name} is now unitscale.formats.{now}", DeprecationWarning, stacklevel=2
    )
    from unitscale.formats import Encoded
    from unitscale.gemm.operand import Use, encode, pack

    if name == "Quantized":
        return Encoded

    def quantize(x: Any, format_name: str | None, *, current: bool = False) -> Encoded:
        use = Use(f"{format_name} current" if format_name and current else format_name)
        return pack(encode(x, use), use)

    return quantize
