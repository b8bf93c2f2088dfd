"""Which operand of which product is rounded to which format, and where its scale comes from."""

from unitscale.formats.granularity import PerAxis, PerBlock, PerTensor, PerTile
from unitscale.recipes.catalogue import (
    RECIPES,
    RIVALS,
    STATIC_LOSS_SCALE,
    cscale,
    parse,
    without_loss_scale,
)
from unitscale.recipes.operand import (
    AS_IS,
    Cast,
    Constant,
    Current,
    Delayed,
    Operand,
    RandomHadamard,
    Unit,
    parse_operand,
)
from unitscale.recipes.recipe import Recipe, uniform
from unitscale.recipes.rule import Gemm, Rule
from unitscale.recipes.throughout import Throughout
from unitscale.recipes.true_fp16 import TRUE_FP16

__all__ = [
    "AS_IS",
    "RECIPES",
    "RIVALS",
    "STATIC_LOSS_SCALE",
    "TRUE_FP16",
    "Cast",
    "Constant",
    "Current",
    "Delayed",
    "Gemm",
    "Operand",
    "PerAxis",
    "PerBlock",
    "PerTensor",
    "PerTile",
    "RandomHadamard",
    "Recipe",
    "Rule",
    "Throughout",
    "Unit",
    "cscale",
    "parse",
    "parse_operand",
    "uniform",
    "without_loss_scale",
]
