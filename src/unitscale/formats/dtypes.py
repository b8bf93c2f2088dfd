"""Which torch dtype stores a format, and which format a torch dtype is."""

import torch

from unitscale.formats.catalogue import (
    BF16,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    FP16,
    FP32,
    FP64,
)
from unitscale.formats.format import FloatFormat

TORCH_DTYPES: dict[FloatFormat, torch.dtype] = {
    FP64: torch.float64,
    FP32: torch.float32,
    BF16: torch.bfloat16,
    FP16: torch.float16,
    E5M2: torch.float8_e5m2,
    E4M3FN: torch.float8_e4m3fn,
    E5M2FNUZ: torch.float8_e5m2fnuz,
    E4M3FNUZ: torch.float8_e4m3fnuz,
    E8M0FNU: torch.float8_e8m0fnu,
}

# The dtypes a value may be held in while it takes only the values of a narrower format.
CARRIERS: dict[torch.dtype, FloatFormat] = {
    torch.float64: FP64,
    torch.float32: FP32,
    torch.bfloat16: BF16,
    torch.float16: FP16,
}


def torch_dtype(fmt: FloatFormat) -> torch.dtype | None:
    """The torch dtype whose elements are the codes of `fmt`, or None (torch's FP4 packs two)."""
    return TORCH_DTYPES.get(fmt)


def carrier(dtype: torch.dtype, caller: str) -> FloatFormat:
    """The format of a dtype that can hold rounded values.

    Raises:
        TypeError: any dtype but float64, float32, bfloat16 and float16; `caller` opens the message.
    """
    if dtype not in CARRIERS:
        raise TypeError(
            f"{caller}: dtype is {dtype}; expected float64, float32, bfloat16 or float16, "
            "so convert it first"
        )
    return CARRIERS[dtype]
