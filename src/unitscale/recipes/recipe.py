"""A recipe says how the operands of matrix products are rounded, and where scales come from.

A linear layer has three products; a recipe names the format of each operand and of each result:

    output      = input       @ weight^T     both in `forward`
    grad_input  = grad_output @ weight       grad_output in `backward`, weight in `forward`
    grad_weight = grad_output^T @ input      grad_output in `backward`, input in `forward`

The module imports no torch: a recipe is data, and printing it needs nothing else.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from unitscale.formats import FloatFormat

ScaleSource = Literal["none", "unit", "loss", "current"]
Executor = Literal["auto", "emulated", "bf16", "scaled_mm"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Numerics of a whole model.

    Args:
        name: as written on the command line.
        forward: format of input and weight; None leaves them as they are.
        backward: format of the output gradient; None leaves it as it is.
        result: format the three results are rounded to; None leaves them in the dtype of the model.
        activations: format every tensor between products is held in, and its gradient; None
            holds them in the dtype of the model. Needs units to be safe.
        saved: format in which element-wise functions (GELU, SiLU, products of two tensors) save
            their inputs for backward; None saves them as they are. Operands of matrix products are
            saved in `forward` in any case. Needs units to be safe.
        source: where an operand's scale comes from: `none` casts as is, `unit` divides by the
            tensor's unit, `loss` is `none` with the loss multiplied by `loss_scale`, `current`
            divides by this tensor's amax over the format's maximum.
        loss_scale: a static factor, or "dynamic" (doubled and halved as overflows come and go).
        skip: patterns of module paths whose products stay in full precision.
        executor: what multiplies the operands, see `unitscale.gemm.executor`; "auto" is the fastest
            that the device has. It changes the order of sums, never a format.

    Raises:
        ValueError: `loss_scale` without source "loss", or the reverse; no such executor.
    """

    name: str
    forward: FloatFormat | None = None
    backward: FloatFormat | None = None
    result: FloatFormat | None = None
    activations: FloatFormat | None = None
    saved: FloatFormat | None = None
    source: ScaleSource = "none"
    loss_scale: float | Literal["dynamic"] | None = None
    skip: tuple[str, ...] = ()
    executor: Executor = "auto"

    def __post_init__(self) -> None:
        if (self.source == "loss") != (self.loss_scale is not None):
            raise ValueError(
                f"Recipe {self.name!r}: source is {self.source!r} and loss_scale is "
                f"{self.loss_scale!r}; a loss scale goes with source='loss', and only with it."
            )
        if self.executor not in get_args(Executor):
            raise ValueError(
                f"Recipe {self.name!r}: executor is {self.executor!r}; expected one of "
                f"{', '.join(get_args(Executor))}."
            )

    @property
    def unit_scaled(self) -> bool:
        """Whether tensors are held at their units (by the model's author or by `unit_scale`)."""
        return self.source == "unit"

    @property
    def rounds(self) -> bool:
        """Whether the recipe changes any product."""
        return any((self.forward, self.backward, self.result))

    def products(self) -> list[tuple[str, str, str, str]]:
        """The three products as rows (product, left format, right format, result format)."""
        forward, backward, result = (
            fmt.name if fmt else "as is" for fmt in (self.forward, self.backward, self.result)
        )
        return [
            ("output", forward, forward, result),
            ("grad_input", backward, forward, result),
            ("grad_weight", backward, forward, result),
        ]
