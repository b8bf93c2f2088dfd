"""The ways to keep optimizer states: one table, from a name to a codec for each part.

Bytes for each parameter beside the parameter itself, of a float32 and of a BF16 parameter:

    states            weight                 m                   v              bytes
    fp32              itself / + 2           4                   4              8 / 10
    fp8-lm            FP16, scaled: 2        E4M3FN: 1           FP16: 2        5 / 5
    coat              itself / + 2           E4M3FN: 1.0625      same           2.125 / 4.125
    bf16-stochastic   itself, BF16 only      4                   4              - / 8
    master24          + 1, BF16 only         int8: 1.0625        uint8: 1.0625  - / 3.125

A moment whose codes and scales would take no less than float32 (a vector, where every row is one
value, in blocks) is held in float32, and so is the master of a single number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from unitscale.formats import E4M3FN, FP16

from .moments import Companded, Expanded, Float32, MomentCodec, TensorScaled
from .weights import Corrected, Master, Own, Split, Stochastic, WeightCodec

StatesName = Literal["fp32", "fp8-lm", "coat", "bf16-stochastic", "master24"]

VERSION = 1
"""Of the fields and blocks of all of them; saved with the states."""

FLOAT32 = Float32()


@dataclass(frozen=True, kw_only=True)
class States:
    """Codecs of the parts of a parameter's state.

    weight: by the dtype of the parameter; a dtype that is missing cannot be held.
    first: of the first moment, or of SGD's momentum.
    second: of the second moment, which is never below zero.
    """

    weight: Mapping[torch.dtype, WeightCodec]
    first: MomentCodec = FLOAT32
    second: MomentCodec = FLOAT32


EXACT: Mapping[torch.dtype, WeightCodec] = {
    torch.float32: Own(),
    torch.bfloat16: Split(),
    torch.float16: Master(codec=FLOAT32),
}
SCALED_FP16 = Master(codec=TensorScaled(format=FP16))

STATES: dict[str, States] = {
    "fp32": States(weight=EXACT),
    "fp8-lm": States(
        weight=dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), SCALED_FP16),
        first=TensorScaled(format=E4M3FN),
        second=TensorScaled(format=FP16, is_positive=True),
    ),
    "coat": States(weight=EXACT, first=Expanded(), second=Expanded(is_positive=True)),
    "bf16-stochastic": States(weight={torch.bfloat16: Stochastic()}),
    "master24": States(
        weight={torch.bfloat16: Corrected()},
        first=Companded(),
        second=Companded(is_positive=True),
    ),
}
