"""A tensor seen group by group, so that one scale of each group meets its elements by broadcasting.

Blocks and tiles get axes of their own: a tensor of (6, 300) in blocks of 128 is seen as
(6, 3, 128), its scales as (6, 3, 1). A short last block is filled up with zeros, which change no
amax. No element moves, so the view costs nothing where nothing is filled up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unitscale.formats.batched import is_batched
from unitscale.formats.granularity import Granularity, PerAxis, PerBlock, PerTile
from unitscale.formats.rounding import is_traced, piece_size


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The groups of tensors of one shape.

    runs: axis and length of the runs that share a scale, each an axis that is split, ascending.
    """

    shape: tuple[int, ...]
    granularity: Granularity
    scale_shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    @property
    def lanes(self) -> tuple[int, ...]:
        """The axes within groups, of a split tensor."""
        return tuple(axis + 1 + i for i, (axis, _) in enumerate(self.runs))

    def split(self, x: Tensor) -> Tensor:
        """The tensor with its blocks in axes of their own, filled up."""
        if not self.runs:
            return x
        shape = list(x.shape)
        for axis, size in self.runs:
            if missing := -shape[axis] % size:
                fill = list(shape)
                fill[axis] = missing
                x = torch.cat([x, x.new_zeros(fill)], axis)
                shape[axis] += missing
        for lane, (_, size) in zip(self.lanes, self.runs, strict=True):
            shape[lane - 1 : lane] = [shape[lane - 1] // size, size]
        return x.reshape(shape)

    def join(self, blocks: Tensor) -> Tensor:
        """The tensor whose `split` these blocks are, without what was filled in."""
        if not self.runs:
            return blocks
        padded = list(self.shape)
        for axis, size in self.runs:
            padded[axis] += -padded[axis] % size
        x = blocks.reshape(padded)
        for axis, _ in self.runs:
            if padded[axis] != self.shape[axis]:
                x = x.narrow(axis, 0, self.shape[axis])
        return x.contiguous()

    def spread(self, scale: Tensor) -> Tensor:
        """Scales with an axis of one element beside each that they lie along."""
        for lane in self.lanes:
            if scale.dim():
                scale = scale.unsqueeze(lane)
        return scale

    def unspread(self, scale: Tensor) -> Tensor:
        """Scales of the shape that they have outside."""
        return scale.reshape(self.scale_shape)

    @property
    def within(self) -> tuple[int, ...]:
        """The axes of a split tensor that an amax runs over; none for the whole tensor."""
        if isinstance(self.granularity, PerAxis) and self.shape:
            return (self.granularity.axis % len(self.shape),)
        return self.lanes

    def keep_whole(self, blocks: Tensor) -> Tensor:
        """`keep_whole` along each axis within groups."""
        for lane in self.lanes:
            blocks = keep_whole(blocks, lane)
        return blocks


def amax_within(blocks: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The largest magnitude over these axes, kept with one element each; over all if none is named.

    NaN where there is a NaN; 0 of no elements.
    """
    if not blocks.numel():
        kept = [1 if axis in axes else size for axis, size in enumerate(blocks.shape)]
        return blocks.new_zeros(kept if axes else ())
    if axes:
        return blocks.abs().amax(axes, keepdim=True)
    if is_traced(blocks) or is_batched(blocks):
        return blocks.abs().amax()
    low, high = blocks.aminmax()  # takes a tenth of the time
    return torch.maximum(-low, high)


def keep_whole(blocks: Tensor, axis: int) -> Tensor:
    """The same blocks, of which Inductor will not lose the end.

    A slice of them in the same graph is fused into the loop that reads the scales at
    `index // size`. Inductor splits such a loop by `size`, and where that does not divide the
    length of the slice it leaves out the rest: memory that nobody wrote (torch 2.13,
    `try_loop_split`). It leaves loops alone that compute an index modulo something.
    """
    size = blocks.shape[axis]
    index = torch.arange(size, device=blocks.device)
    index = index.view(-1, *[1] * (blocks.dim() - axis % blocks.dim() - 1))
    return torch.where(index < size, blocks, 0)


def grouping(shape: tuple[int, ...], granularity: Granularity) -> Grouping:
    """The groups of a tensor of this shape.

    Raises:
        ValueError: the granularity names an axis that the tensor has not.
    """
    runs: tuple[tuple[int, int], ...] = ()
    scale_shape = granularity.scale_shape(shape)
    if isinstance(granularity, PerBlock):
        runs = ((granularity.axis % len(shape), granularity.size),)
    elif isinstance(granularity, PerTile):
        last = len(shape) - 1
        runs = ((last - 1, granularity.rows), (last, granularity.columns))
    runs = tuple((axis, run_of(size, shape[axis])) for axis, size in runs)
    return Grouping(shape=shape, granularity=granularity, scale_shape=scale_shape, runs=runs)


FILLED = 128


def run_of(size: int, length: int) -> int:
    """How long the runs of an axis are: a block longer than the axis is the axis.

    One of 128 and fewer is filled up all the same: that costs little, random bits go by the index
    in it, and a graph for any length has no branch.
    """
    return size if size <= FILLED else min(size, max(length, 1))


Part = Callable[[Tensor, Tensor | None, tuple[int, ...]], list[Tensor]]


def pieces(part: Part, blocks: Tensor, scale: Tensor | None, axes: tuple[int, ...]) -> list[Tensor]:
    """What `part(blocks, scale, axes)` gives, computed from a few groups at a time.

    Each piece stays in the cache from its amax to its values. The axes before those within groups
    are taken as one and cut; where there are none, or a given scale is not one for each group, the
    whole is computed at once.

    Args:
        part: of blocks, their scales or None, and the axes within groups; results of as many axes.
    """
    first = axes[0] if axes else 0
    if not first or (scale is not None and scale.dim() != blocks.dim()):
        return part(blocks, scale, axes)
    shift = first - 1
    flat = blocks.flatten(0, shift)
    flat_scale = None if scale is None else scale.flatten(0, shift)
    axes = tuple(axis - shift for axis in axes)
    step = max(1, piece_size() * len(flat) // max(1, flat.numel()))
    results: list[Tensor] = []
    for start in range(0, len(flat), step):
        cut = slice(start, start + step)
        found = part(flat[cut], None if flat_scale is None else flat_scale[cut], axes)
        if not results:
            results = [y.new_empty(len(flat), *y.shape[1:]) for y in found]
        for y, out in zip(found, results, strict=True):
            out[cut] = y
    return [y.reshape(*blocks.shape[:first], *y.shape[1:]) for y in results]
