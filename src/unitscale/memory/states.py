"""Bytes of optimizer states for each parameter, by codec: the one table of them here. No torch.

Beside the parameter and its gradient, both of which torch holds in the dtype of the parameter:

    states            weight              m              v              of float32   of BF16
    fp32              itself / + 2        4              4              8            10
    fp8-lm            FP16, scaled: 2     E4M3FN: 1      FP16: 2        5            5
    coat              itself / + 2        E4M3FN + 1/16  the same       2.125        4.125
    bf16-stochastic   itself, BF16 only   4              4              -            8
    master24          + 1, BF16 only      int8 + 1/16    uint8 + 1/16   -            3.125

1/16 is what groups add: two float32 numbers for 128 values (COAT's scale and exponent), or a
16-bit scale for 32 values. Vectors, whose groups are too short, are held in float32; they are one
parameter in thousands. Sources: FP8-LM, arXiv 2310.18313, section 2; COAT, arXiv 2410.19313,
section 4; FlashOptim, arXiv 2602.23349.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GROUPED = 1 + 1 / 16


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes for each parameter, metadata included.

    Args:
        weight: what is held beside the parameter itself, by the parameter's dtype; a dtype that is
            missing cannot be held.
        first, second: of the two moments.
        master: the format in which it has the weight, by the parameter's dtype, in words.
        moments: the formats of the two moments, in words.
    """

    weight: Mapping[str, float]
    first: float
    second: float
    master: Mapping[str, str]
    moments: str


EXACT = MappingProxyType({"fp32": 0.0, "bf16": 2.0})
BF16_ALONE = MappingProxyType({"bf16": 0.0})
CORRECTED = MappingProxyType({"bf16": 1.0})
SCALED_FP16 = MappingProxyType({"fp32": 2.0, "bf16": 2.0})

EXACT_AS = MappingProxyType(
    {"fp32": "fp32: the parameter itself", "bf16": "fp32: the bf16 parameter and 2 bytes beside it"}
)
BF16_ALONE_AS = MappingProxyType({"bf16": "bf16: the parameter itself, rounded stochastically"})
CORRECTED_AS = MappingProxyType({"bf16": "24 bits: the bf16 parameter and 1 byte beside it"})
SCALED_FP16_AS = MappingProxyType(dict.fromkeys(("fp32", "bf16"), "scaled FP16, a copy"))
FP32_MOMENTS = "both fp32"

STATES: Mapping[str, StateBytes] = MappingProxyType(
    {
        "fp32": StateBytes(weight=EXACT, first=4, second=4, master=EXACT_AS, moments=FP32_MOMENTS),
        "fp8-lm": StateBytes(
            weight=SCALED_FP16,
            first=1,
            second=2,
            master=SCALED_FP16_AS,
            moments="scaled E4M3FN and scaled FP16",
        ),
        "coat": StateBytes(
            weight=EXACT,
            first=GROUPED,
            second=GROUPED,
            master=EXACT_AS,
            moments="both E4M3FN, expanded, a scale for 128 values",
        ),
        "bf16-stochastic": StateBytes(
            weight=BF16_ALONE, first=4, second=4, master=BF16_ALONE_AS, moments=FP32_MOMENTS
        ),
        "master24": StateBytes(
            weight=CORRECTED,
            first=GROUPED,
            second=GROUPED,
            master=CORRECTED_AS,
            moments="int8 and uint8, companded, a scale for 64 values",
        ),
    }
)


def state_formats(states: str, dtype: str) -> dict[str, str]:
    """What `states` hold of a parameter of a dtype, in words: `master` and `moments`.

    Raises:
        As `state_bytes`.
    """
    state_bytes(states, dtype)
    return {"master": STATES[states].master[dtype], "moments": STATES[states].moments}


def state_bytes(states: str, dtype: str) -> dict[str, float]:
    """Bytes for each parameter of a dtype, by kind: `master`, `first`, `second`.

    Raises:
        ValueError: unknown states, or states that cannot hold that dtype.
    """
    if states not in STATES:
        raise ValueError(f"unknown states {states!r}; expected one of {', '.join(STATES)}")
    found = STATES[states]
    if dtype not in found.weight:
        raise ValueError(
            f"{states} holds parameters in {' or '.join(found.weight)}, not in {dtype}; use "
            f"--dtype {next(iter(found.weight))}, or other states"
        )
    return {"master": found.weight[dtype], "first": found.first, "second": found.second}
