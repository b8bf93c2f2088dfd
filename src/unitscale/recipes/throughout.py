"""One format for every tensor of a training run. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from unitscale.formats import FP16, FloatFormat

__all__ = ["Subnormals", "Throughout", "check_alone"]

Subnormals = Literal["kept", "flushed"]


@dataclass(frozen=True, kw_only=True)
class Throughout:
    """Weights, activations, gradients and Adam's first moment are held in one format.

    What stays in FP32: sums inside products, statistics of norms, the loss, Adam's second moment
    and the arithmetic of the update. So there is no master copy: an update that is too small for
    the format is lost.

    Args:
        format: of every tensor; a value beyond its largest one is Inf.
        rounding: "nearest", or "stochastic": up or down, so that the mean is right.
        subnormals: "kept" as IEEE 754 has them; "flushed" to zero after rounding, as some hardware
            does: whatever is below the smallest normal value is lost.
    Raises:
        TypeError: format is no FloatFormat. ValueError: another word.
    Source: Blake, Orr, Luschi, Unit Scaling, arXiv 2303.11257, appendix on the character models.
    """

    format: FloatFormat = FP16
    rounding: Literal["nearest", "stochastic"] = "nearest"
    subnormals: Subnormals = "kept"

    def __post_init__(self) -> None:
        if not isinstance(self.format, FloatFormat):
            raise TypeError(
                f"Throughout: format is {self.format!r}; expected a FloatFormat, such as "
                "unitscale.formats.FP16."
            )
        if not self.format.has_inf:
            raise ValueError(
                f"Throughout: format is {self.format}, which has no Inf, so that an overflow would "
                "not be seen; expected FP16 or BF16, say."
            )
        for name, legal in (
            ("rounding", ("nearest", "stochastic")),
            ("subnormals", get_args(Subnormals)),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"Throughout: {name} is {getattr(self, name)!r}; expected one of "
                    f"{', '.join(legal)}."
                )

    def __str__(self) -> str:
        return f"{self.format} {self.rounding}, subnormals {self.subnormals}"


def check_alone(recipe: str, throughout: object, beside: Mapping[str, object]) -> None:
    """Refuse one format for everything together with what would round some of it otherwise.

    Units and a static loss scale are fine together here: so is measured how far off a model is.

    Args:
        recipe: its name. beside: other parts of the recipe by name, falsy where it has none.
    Raises:
        TypeError: no Throughout. ValueError: rounded products, `activations`, `saved`, states, or a
            loss scale that changes.
    """
    if not isinstance(throughout, Throughout):
        raise TypeError(
            f"Recipe {recipe!r}: throughout is {throughout!r}; expected a Throughout or None."
        )
    for name, value in beside.items():
        if value and (name != "loss_scale" or value == "dynamic"):
            raise ValueError(
                f"Recipe {recipe!r}: it has throughout and {name} ({value!r}); every tensor has "
                "one format, leave one of the two out."
            )
