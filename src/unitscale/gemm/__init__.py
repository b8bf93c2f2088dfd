"""The low-precision matrix product: rounded operands and results, saved in eight bits."""

from unitscale.gemm.product import addmm, linear, matmul
from unitscale.gemm.rounded import ProductFormats, Quantized, quantize, rounded

__all__ = ["ProductFormats", "Quantized", "addmm", "linear", "matmul", "quantize", "rounded"]
