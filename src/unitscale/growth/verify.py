"""What a grown model computes, against what the small one did, before anything trains."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.anatomy.output import called, evaluating, plain
from unitscale.anatomy.whole import unwrapped
from unitscale.units.forward import session_of

__all__ = ["TOLERANCE", "Proof", "verify"]

TOLERANCE = 1e-5
"""Of the largest output, for float32. Sums in another order differ by a tenth of it, and a factor
that is wrong by one in a thousand by a hundred times as much."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far the outputs of a grown model are from those of the small one.

    Attributes:
        largest: the largest output of the small model.
        difference: the largest difference to it, without rounding to any recipe.
        loss, grown_loss: of both models, where they compute one.
        tolerance: what `difference` may be, relative to `largest`.
        in_recipe: the largest difference with both under their recipe; None without one. Where the
            recipe rounds, the noise that a plan adds moves weights to other codes, so that this is
            of the size of its rounding; with noise=0 and twice the width it is that of sums in
            another order.
    """

    largest: float
    difference: float
    loss: float | None
    grown_loss: float | None
    tolerance: float
    in_recipe: float | None = None

    @property
    def preserved(self) -> bool:
        """Whether the grown model computes what the small one does, to the tolerance."""
        return self.difference <= self.tolerance * self.largest  # false for NaN

    def __str__(self) -> str:
        verdict = "preserved" if self.preserved else "changed"
        text = (
            f"function {verdict}: outputs up to {self.largest:.4g} differ by {self.difference:.2e} "
            f"(tolerance {self.tolerance * self.largest:.2e})"
        )
        if self.in_recipe is not None:
            text += (
                f", under the recipe by {self.in_recipe:.2e} (noise of the plan moves weights to "
                "other codes; with noise=0 sums in another order alone)"
            )
        if self.loss is not None and self.grown_loss is not None:
            text += f"; loss {self.loss:.6f} -> {self.grown_loss:.6f}"
        return text


def verify(
    small: nn.Module, grown: nn.Module, batch: Any, *, tolerance: float | None = None
) -> Proof:
    """Compare a grown model with the small one on a batch: both in eval(), without gradients.

    Of method="fpi" with identity blocks, and of a mixture, `preserved` is to be true. Of the other
    methods it is false by design, and `difference` and the losses say by how much.

    Args:
        small, grown: of torch.compile(model) the model itself is called.
        batch: what the models take: a mapping of arguments, a tuple of them, or one.
        tolerance: relative to the largest output; None is `TOLERANCE`, or where weights are held in
            fewer bits 4 of their epsilons, since a third of one is rounded. What is computed is
            compared in float32 in any case.

    Raises:
        ValueError: outputs of different shapes, or not finite; a batch without an output.
    """
    small, grown = unwrapped(small), unwrapped(grown)
    if tolerance is None:
        dtypes = {p.dtype for p in small.parameters() if p.is_floating_point()}
        tolerance = max(TOLERANCE, *(4 * torch.finfo(dtype).eps for dtype in dtypes))
    with evaluating(small), evaluating(grown), torch.no_grad():
        with plain(small), plain(grown):
            loss, own = called(small, batch, "growth", in_float32=True)
            grown_loss, other = called(grown, batch, "growth", in_float32=True)
        difference = distance(own, other)
        in_recipe = None
        if session_of(small) is not None and session_of(grown) is not None:
            in_recipe = distance(*(called(one, batch, "growth")[1] for one in (small, grown)))
    return Proof(
        largest=own.abs().max().item(),
        difference=difference,
        loss=loss,
        grown_loss=grown_loss,
        tolerance=tolerance,
        in_recipe=in_recipe,
    )


def distance(own: Tensor, other: Tensor) -> float:
    """The largest difference between two outputs.

    Raises:
        ValueError: they cannot be compared.
    """
    if own.shape != other.shape:
        raise ValueError(
            f"growth: the small model's output has the shape {list(own.shape)} and the grown one's "
            f"{list(other.shape)}; expected the same: compare models with a head"
        )
    if not own.numel() or not own.isfinite().all():
        what = "holds NaN or infinity" if own.numel() else "is empty"
        raise ValueError(
            f"growth: the small model's output {what}; give another batch, or a model that did not "
            "diverge"
        )
    if not own.any():
        raise ValueError(
            "growth: the small model's outputs are all zero, which proves nothing; verify before "
            "its head is set to zero, or after some steps"
        )
    return (own.double() - other.double()).abs().max().item()
