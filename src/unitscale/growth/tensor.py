"""One tensor grown: its values, and the moments that an optimizer holds of it.

Two rules decide both. A new element holds `a` times an old one, of which there are `n` copies: the
model computes what it did if the copies that are summed share what the old one had, a = 1 / n. And
the gradient of a copy is 1 / (n a) of the old one's, since together they move the old function.

A doubled layer y = W x, with 2 copies of each x and each y: W' = W / 2, in four copies, and the
gradient of each is half of W's. Of its bias there are two copies, each whole: half the gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unitscale.anatomy.architecture import Use, Uses
from unitscale.anatomy.optimizer import Moment
from unitscale.growth.space import Space

__all__ = ["Growth"]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How tensors of one name grow.

    Attributes:
        uses: what each axis is.
        spaces: how each space grows.
        norm: what new channels of a padded stream hold: nothing ("rms"), or the mean ("layer").
        folds: the copies that a tied read-out sums, which the norm before it divides by.
    """

    uses: Uses
    spaces: Mapping[str, Space]
    norm: Literal["layer", "rms"]
    folds: float = 1.0

    @property
    def grows(self) -> bool:
        """Whether a tensor changes."""
        used = [space for use in self.uses if use for space in use.spaces]
        return any(self.spaces[space].grows for space in used)

    def values(self, old: Tensor, beside: Tensor | None = None) -> Tensor:
        """The grown tensor, in the dtype of the old one.

        Args:
            beside: what new rows hold in place of copies: the same tensor of the next layer (AKI).
        """
        if not self.grows:
            return old.clone()
        grown = old.double()
        other = None if beside is None else beside.double()
        for axis, use in enumerate(self.uses):
            if use is not None:
                grown = self.along(grown, axis, use, other)
                other = None if other is None else self.along(other, axis, use)
        return grown.to(old.dtype)

    def along(self, x: Tensor, axis: int, use: Use, other: Tensor | None = None) -> Tensor:
        """Values grown along one axis; `other` is what new rows are made of."""
        space = self.space(use)
        found = x.index_select(axis, space.source)
        if use.role == "read":
            return found / along_axis(space.counts, axis, x.ndim)
        is_new = ~along_axis(space.is_first, axis, x.ndim)
        if use.role == "write":
            if space.is_padded:
                fill = x.mean(axis, keepdim=True) if self.norm == "layer" else torch.zeros(())
                return torch.where(is_new, fill.double(), found)
            if other is not None:
                return torch.where(is_new, other.index_select(axis, space.source), found)
            return found
        found = found / self.folds
        if use.role == "gain":
            return found * space.shrink
        return torch.where(is_new, 0.0, found) if space.is_padded else found

    def moment(self, old: Tensor, kind: Moment, beside: Tensor | None = None) -> Tensor:
        """The grown state of an optimizer, of the shape of its parameter.

        Guarantees what the state would be had the grown model made the same steps, if no ties were
        broken. Padding has no history: no mean, and the mean of the others' squares.

        Args:
            beside: the state of the tensor that new rows are made of.
        """
        if not self.grows:
            return old.clone()
        grown, other = old.double(), None if beside is None else beside.double()
        for axis, use in enumerate(self.uses):
            if use is not None:
                grown, other = (
                    self.moment_along(grown, axis, use, kind, other),
                    None if other is None else self.moment_along(other, axis, use, kind),
                )
        return grown.to(old.dtype)

    def moment_along(
        self, x: Tensor, axis: int, use: Use, kind: Moment, other: Tensor | None = None
    ) -> Tensor:
        """A state grown along one axis."""
        space = self.space(use)
        found = x.index_select(axis, space.source)
        is_new = ~along_axis(space.is_first, axis, x.ndim)
        if use.role == "write" and other is not None and not space.is_padded:
            found = torch.where(is_new, other.index_select(axis, space.source), found)
        if use.role != "read":
            share = along_axis(space.counts, axis, x.ndim) / self.folds
            if use.role == "gain":
                share = share * space.shrink
            found = found / (share if kind == "first" else share.square())
        if space.is_padded:
            fill = x.mean(axis, keepdim=True) if kind == "second" else torch.zeros(())
            found = torch.where(is_new, fill.double(), found)
        return found

    def space(self, use: Use) -> Space:
        """How an axis grows that is made of spaces, one after another."""
        parts = [self.spaces[name] for name in use.spaces]
        if len(parts) == 1:
            return parts[0]
        starts = [sum(part.old for part in parts[:i]) for i in range(len(parts))]
        source = torch.cat([part.source + at for part, at in zip(parts, starts, strict=True)])
        return Space(sum(part.old for part in parts), source)

    def word(self, use: Use) -> str:
        """What becomes of an axis, in a few words; "" of one that stays."""
        space = self.space(use)
        if not space.grows:
            return ""
        if space.is_padded:
            fill = "mean" if self.norm == "layer" else "zero"
            words = {"write": f"padded with {fill}", "read": "new columns copied", "shift": "0"}
            return words.get(use.role, f"times {space.shrink:.4g}")
        if use.role == "read":
            low, high = int(space.counts.min()), int(space.counts.max())
            return f"columns shared by {low if low == high else f'{low} to {high}'}"
        return "copied" if use.role in ("gain", "shift") else "rows copied"

    def noise(self, grown: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """The grown tensor with its ties broken, and the same function.

        Columns that copy one another get noise that sums to zero over the copies, so that what
        they read, which is equal, adds up as before; but what made it gets different gradients.

        Args:
            scale: RMS of the noise before its mean is removed, relative to the tensor's.
        """
        for axis, use in enumerate(self.uses):
            if use is None or use.role != "read":
                continue
            space = self.space(use)
            if scale == 0 or space.is_padded or not space.grows:
                continue
            drawn = torch.randn(grown.shape, generator=generator, dtype=torch.float64)
            drawn = drawn * (scale * grown.double().square().mean().sqrt().cpu())
            shape = [*grown.shape]
            shape[axis] = space.old
            sums = torch.zeros(shape, dtype=torch.float64).index_add_(axis, space.source, drawn)
            means = sums.index_select(axis, space.source) / along_axis(
                space.counts, axis, grown.ndim
            )
            return (grown.double() + (drawn - means).to(grown.device)).to(grown.dtype)
        return grown


def along_axis(values: Tensor, axis: int, ndim: int) -> Tensor:
    """A vector, shaped to multiply a tensor along an axis."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])
