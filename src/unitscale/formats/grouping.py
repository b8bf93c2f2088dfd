"""A tensor seen group by group, so that one scale of each group meets its elements by broadcasting.

Blocks and tiles get axes of their own: a tensor of (6, 300) in blocks of 128 is seen as
(6, 3, 128), its scales as (6, 3, 1). A short last block is filled up with zeros, which change no
amax. No element moves, so the view costs nothing where nothing is filled up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unitscale.formats.granularity import Granularity, PerAxis, PerBlock, PerTensor, PerTile


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

    def amax(self, blocks: Tensor) -> Tensor:
        """The largest magnitude of each group, in axes of one element; NaN if it holds a NaN."""
        if isinstance(self.granularity, PerTensor):
            return blocks.abs().amax() if blocks.numel() else blocks.new_zeros(())
        if isinstance(self.granularity, PerAxis):
            if not blocks.numel():
                return blocks.new_zeros(self.scale_shape)
            return blocks.abs().amax(self.granularity.axis, keepdim=True)
        return blocks.abs().amax(self.lanes, keepdim=True)

    def keep_whole(self, blocks: Tensor) -> Tensor:
        """The same blocks, of which Inductor will not lose the end.

        A slice of them in the same graph is fused into the loop that reads the scales at
        `index // size`. Inductor splits such a loop by `size`, and where that does not divide the
        length of the slice it leaves out the rest: memory that nobody wrote (torch 2.13,
        `try_loop_split`). It leaves loops alone that compute an index modulo something.
        """
        for lane, (_, size) in zip(self.lanes, self.runs, strict=True):
            index = torch.arange(size, device=blocks.device)
            index = index.view(-1, *[1] * (blocks.dim() - lane - 1))
            blocks = torch.where(index < size, blocks, 0)
        return blocks


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
    return Grouping(shape=shape, granularity=granularity, scale_shape=scale_shape, runs=runs)
