"""Number formats: what a number is, and rounding to it.

Importing this package imports no torch; `round_to` and the codes bring it in on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unitscale.formats.block import (
    BLOCK_FORMATS,
    MX_E2M1FN,
    MX_E2M3FN,
    MX_E3M2FN,
    MX_E4M3FN,
    MX_E5M2,
    NVFP4,
    BlockFormat,
)
from unitscale.formats.catalogue import (
    BF16,
    E2M1FN,
    E2M3FN,
    E3M2FN,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    FORMATS,
    FP16,
    FP32,
    FP64,
    INT8,
    TF32,
    parse,
)
from unitscale.formats.format import FloatFormat, Specials
from unitscale.formats.granularity import Granularity, PerAxis, PerBlock, PerTensor, PerTile

if TYPE_CHECKING:
    from unitscale.formats.blockwise import (
        BlockTensor,
        dequantize_blocks,
        quantize_blocks,
        round_to_blocks,
    )
    from unitscale.formats.codec import Codec, Encoded
    from unitscale.formats.codes import decode, encode, widen
    from unitscale.formats.dtypes import torch_dtype
    from unitscale.formats.rounding import round_to

_NEEDS_TORCH = {
    "BlockTensor": "blockwise",
    "Codec": "codec",
    "Encoded": "codec",
    "decode": "codes",
    "dequantize_blocks": "blockwise",
    "encode": "codes",
    "quantize_blocks": "blockwise",
    "round_to": "rounding",
    "round_to_blocks": "blockwise",
    "torch_dtype": "dtypes",
    "widen": "codes",
}

__all__ = [
    "BF16",
    "BLOCK_FORMATS",
    "E2M1FN",
    "E2M3FN",
    "E3M2FN",
    "E3M4",
    "E4M3",
    "E4M3B11FNUZ",
    "E4M3FN",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0FNU",
    "FORMATS",
    "FP16",
    "FP32",
    "FP64",
    "INT8",
    "MX_E2M1FN",
    "MX_E2M3FN",
    "MX_E3M2FN",
    "MX_E4M3FN",
    "MX_E5M2",
    "NVFP4",
    "TF32",
    "BlockFormat",
    "BlockTensor",
    "Codec",
    "Encoded",
    "FloatFormat",
    "Granularity",
    "PerAxis",
    "PerBlock",
    "PerTensor",
    "PerTile",
    "Specials",
    "decode",
    "dequantize_blocks",
    "encode",
    "parse",
    "quantize_blocks",
    "round_to",
    "round_to_blocks",
    "torch_dtype",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
