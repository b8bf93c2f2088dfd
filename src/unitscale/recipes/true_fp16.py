"""FP16 for every tensor, without a master copy: what the paper calls FP16. Imports no torch.

`fp16-none` and `fp16-loss` round the operands and results of products and keep weights in FP32.
Here nothing is kept: a gradient that FP16 does not hold is lost to the optimizer too.

    fp16-true                   rounded to nearest, subnormals kept
    fp16-true-stochastic        rounded up or down by chance
    fp16-true-ftz               subnormals flushed to zero
    fp16-true-units, ...        the same three for the unit-scaled model
    fp16-true-ftz(11)           with the loss times 2^11
"""

import re
from dataclasses import replace

from unitscale.formats import FP16
from unitscale.recipes.operand import Unit
from unitscale.recipes.recipe import Recipe, uniform
from unitscale.recipes.throughout import Throughout

__all__ = ["TRUE_FP16", "scaled_loss"]

SOURCE = "Blake, Orr, Luschi, Unit Scaling, arXiv 2303.11257, section 5: character models"
FORMS = {
    "fp16-true": (Throughout(format=FP16), "Blake et al.: FP16"),
    "fp16-true-stochastic": (
        Throughout(format=FP16, rounding="stochastic"),
        "FP16 by chance",
    ),
    "fp16-true-ftz": (
        Throughout(format=FP16, subnormals="flushed"),
        "FP16, no subnormals",
    ),
}
NUMBERED = re.compile(r"(fp16-none|fp8-none|fp16-true[a-z-]*)\((-?[0-9]{1,2})\)")


TRUE_FP16: dict[str, Recipe] = {
    name + "-units" * units: Recipe(
        name=name + "-units" * units,
        rules=uniform(None, None, scale=Unit()) if units else (),
        throughout=how,
        users=users,
        source=SOURCE,
    )
    for units in (False, True)
    for name, (how, users) in FORMS.items()
}
"""The three forms for the standard model and for the unit-scaled one: a family beside `RECIPES`,
for trainings of character models alone."""


def scaled_loss(name: str, known: dict[str, Recipe]) -> Recipe | None:
    """The recipe that `NAME(k)` stands for: that of NAME, with the loss times 2^k.

    None if the text is no such name.
    """
    match = NUMBERED.fullmatch(name)
    if match is None or match[1] not in known:
        return None
    return replace(known[match[1]], name=name, loss_scale=2.0 ** int(match[2]))
