"""The number formats people use, one row each, and the parser of their names. Imports no torch."""

import difflib
import re

from unitscale.formats.format import FloatFormat, Specials

_IEEE = "IEEE 754-2019, Table 3.5"
_OFP8 = "OCP OFP8 v1.0; arXiv 2209.05433"
_FNUZ = "arXiv 2206.02915; StableHLO RFC 20230321-fp8_fnuz"
_B11 = "StableHLO RFC 20230309-e4m3b11"
_INTEGER = "symmetric integers, arXiv 2004.09602, section 3.2; -128 is left out"
_MX = "OCP Microscaling Formats v1.0"


def _row(
    name: str, exponent_bits: int, mantissa_bits: int, bias: int, specials: Specials, source: str
) -> FloatFormat:
    return FloatFormat(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=bias,
        specials=specials,
        source=source,
    )


# fmt: off
FP64 = _row("FP64", 11, 52, 1023, Specials.IEEE, _IEEE)
FP32 = _row("FP32", 8, 23, 127, Specials.IEEE, _IEEE)
TF32 = _row("TF32", 8, 10, 127, Specials.IEEE, "NVIDIA A100 Tensor Core GPU Architecture, 2020")
BF16 = _row("BF16", 8, 7, 127, Specials.IEEE, "Intel BFLOAT16 Hardware Numerics Definition, 2018")
FP16 = _row("FP16", 5, 10, 15, Specials.IEEE, _IEEE)
E5M2 = _row("E5M2", 5, 2, 15, Specials.IEEE, _OFP8)
E4M3FN = _row("E4M3FN", 4, 3, 7, Specials.ALL_ONES_NAN, _OFP8)
E4M3 = _row("E4M3", 4, 3, 7, Specials.IEEE, "LLVM Float8E4M3, pull request 97179")
E3M4 = _row("E3M4", 3, 4, 3, Specials.IEEE, "LLVM Float8E3M4, pull request 99698")
E5M2FNUZ = _row("E5M2FNUZ", 5, 2, 16, Specials.NEGATIVE_ZERO_NAN, _FNUZ)
E4M3FNUZ = _row("E4M3FNUZ", 4, 3, 8, Specials.NEGATIVE_ZERO_NAN, _FNUZ)
E4M3B11FNUZ = _row("E4M3B11FNUZ", 4, 3, 11, Specials.NEGATIVE_ZERO_NAN, _B11)
E3M2FN = _row("E3M2FN", 3, 2, 3, Specials.NONE, _MX)
E2M3FN = _row("E2M3FN", 2, 3, 1, Specials.NONE, _MX)
E2M1FN = _row("E2M1FN", 2, 1, 1, Specials.NONE, _MX)
INT8 = _row("INT8", 1, 6, -5, Specials.NEGATIVE_ZERO_NAN, _INTEGER)
# fmt: on
E8M0FNU = FloatFormat(
    name="E8M0FNU",
    exponent_bits=8,
    mantissa_bits=0,
    bias=127,
    specials=Specials.ALL_ONES_NAN,
    is_signed=False,
    has_zero=False,
    source=_MX,
)

FORMATS: dict[str, FloatFormat] = {
    "FP64": FP64,
    "FP32": FP32,
    "TF32": TF32,
    "BF16": BF16,
    "FP16": FP16,
    "E5M2": E5M2,
    "E4M3FN": E4M3FN,
    "E4M3": E4M3,
    "E3M4": E3M4,
    "E5M2FNUZ": E5M2FNUZ,
    "E4M3FNUZ": E4M3FNUZ,
    "E4M3B11FNUZ": E4M3B11FNUZ,
    "E3M2FN": E3M2FN,
    "E2M3FN": E2M3FN,
    "E2M1FN": E2M1FN,
    "INT8": INT8,
    "E8M0FNU": E8M0FNU,
}


def parse(name: str) -> FloatFormat:
    """The format of that name, in any case; `E<x>M<y>` makes an IEEE-like one on demand.

    IEEE-like means bias `2**(x - 1) - 1` and a top exponent of Inf and NaN, so `E4M3` is the format
    with maximum 240. The one with maximum 448 that hardware calls E4M3 is `E4M3FN`.

    Raises:
        ValueError: no such format (the message lists the names and the nearest one), or an
            `E<x>M<y>` outside x in 2..11, y in 1..52.
    """
    wanted = name.strip().upper()
    if wanted in FORMATS:
        return FORMATS[wanted]
    if match := re.fullmatch(r"E(\d+)M(\d+)", wanted):
        exponent_bits, mantissa_bits = map(int, match.groups())
        if not (2 <= exponent_bits <= 11 and 1 <= mantissa_bits <= 52):
            raise ValueError(f"format {name!r} is out of range; expected E2M1 to E11M52")
        bias = 2 ** (exponent_bits - 1) - 1
        return _row(
            wanted, exponent_bits, mantissa_bits, bias, Specials.IEEE, "IEEE-like, on demand"
        )
    nearest = difflib.get_close_matches(wanted, FORMATS, n=1, cutoff=0.5)
    hint = f", did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(
        f"unknown format {name!r}{hint}; expected one of {', '.join(FORMATS)}, or E<x>M<y>"
    )
