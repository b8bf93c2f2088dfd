"""What this process holds of a parameter, as rows; and the pieces that a step works through.

A parameter of shape (d0, d1, ...) has d0 rows of d1 * ... values; a vector has rows of one, a
0-dim tensor is one row. FSDP2 gives each process some rows, as a DTensor with `Shard(0)`. A step
never needs more than a piece of the rows in float32.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .moments import Layout


class Piece(NamedTuple):
    """Some rows, or some columns of one row; `start` counts values of the whole parameter."""

    rows: slice
    columns: slice
    start: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows that this process holds.

    shape: of the whole parameter.
    rows: how many are here, from row `first` of the parameter on.
    width: values in a row.
    placed: the DTensor's mesh and placements; None for a plain tensor.
    group: the processes that hold the other rows; None if all rows are here.
    """

    shape: torch.Size
    rows: int
    first: int
    width: int
    placed: tuple[Any, Any] | None = None
    group: Any = None

    def field_shape(self, layout: Layout, block: int, rows: int) -> tuple[int, ...]:
        """The shape of a field for this many rows: all of them, or those that are here."""
        if layout == "tensor":
            return ()
        if layout == "element":
            return (rows, *self.shape[1:]) if self.shape else ()
        return rows, -(-self.width // block)

    def global_shape(self, layout: Layout, block: int) -> tuple[int, ...]:
        """The shape of a field of the whole parameter."""
        return self.field_shape(layout, block, self.shape[0] if self.shape else 1)

    def zeros(self, dtype: torch.dtype, layout: Layout, block: int, device: torch.device) -> Tensor:
        """A field that is zero, placed as the parameter is."""
        local = torch.zeros(self.field_shape(layout, block, self.rows), dtype=dtype, device=device)
        return self.place(local, layout, block)

    def place(self, local: Tensor, layout: Layout, block: int) -> Tensor:
        """The rows of a field that are here, as a tensor like the parameter: plain or DTensor."""
        if self.placed is None or layout == "tensor":
            return local
        from torch.distributed.tensor import DTensor

        shape = self.global_shape(layout, block)
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        mesh, placements = self.placed
        return DTensor.from_local(
            local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )

    def take(self, field: Tensor, layout: Layout) -> Tensor:
        """The rows that are here, of a field that is placed in any way or whole."""
        if is_dtensor(field):
            if self.placed is None or layout == "tensor":
                return field.full_tensor()  # type: ignore[attr-defined]
            mesh, placements = self.placed
            return field.redistribute(mesh, placements).to_local()  # type: ignore[attr-defined]
        if layout == "tensor" or self.group is None:
            return field
        return field[self.first : self.first + self.rows]

    def pieces(self, size: int, block: int, *, whole_rows: bool) -> Iterator[Piece]:
        """All values, at most `size` at a time as far as blocks and `whole_rows` allow."""
        if not self.rows or not self.width:
            return
        if self.width <= size or whole_rows:
            step = max(1, size // self.width)
            for row in range(0, self.rows, step):
                rows = slice(row, min(row + step, self.rows))
                yield Piece(rows, slice(0, self.width), (self.first + row) * self.width)
            return
        step = max(block, size // block * block)
        for row in range(self.rows):
            start = (self.first + row) * self.width
            for column in range(0, self.width, step):
                columns = slice(column, min(column + step, self.width))
                yield Piece(slice(row, row + 1), columns, start + column)


def part_of(parameter: Tensor) -> Part:
    """What this process holds of a parameter.

    Raises:
        ValueError: a DTensor that is cut in another way than between rows, or not summed yet.
    """
    shape = parameter.shape
    width = math.prod(shape[1:])
    rows = shape[0] if shape else 1
    if not is_dtensor(parameter):
        return Part(shape=shape, rows=rows, first=0, width=width)
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    cuts = [axis for axis, placement in enumerate(placements) if not placement.is_replicate()]
    if len(cuts) > 1 or not all(placements[axis].is_shard(0) for axis in cuts):
        raise ValueError(
            f"a parameter is a DTensor with placements {tuple(placements)}; expected Replicate and "
            "at most one Shard(0), as fully_shard makes it"
        )
    placed = (mesh, placements)
    if not cuts:
        return Part(shape=shape, rows=rows, first=0, width=width, placed=placed)
    # As torch.chunk cuts: all processes but the last ones hold equally many rows.
    each = -(-rows // mesh.size(cuts[0]))
    first = min(rows, each * mesh.get_local_rank(cuts[0]))
    held = min(rows - first, each)
    if held != parameter.to_local().shape[0]:  # type: ignore[attr-defined]
        raise ValueError(
            f"a parameter is a DTensor of {rows} rows, of which process "
            f"{mesh.get_local_rank(cuts[0])} of {mesh.size(cuts[0])} has "
            f"{parameter.to_local().shape[0]}; expected {held}, as torch.chunk cuts"  # type: ignore[attr-defined]
        )
    return Part(
        shape=shape,
        rows=held,
        first=first,
        width=width,
        placed=placed,
        group=mesh.get_group(cuts[0]),
    )


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter, a gradient or a field."""
    tensor = tensor.detach()
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is distributed; without importing what nobody else has imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def read(tensor: Tensor, piece: Piece, width: int, block: int = 1) -> Tensor:
    """A piece of a local tensor, as rows: a view where its memory allows.

    Of a field with one value for each `block` columns, those of the piece.
    """
    columns = slice(piece.columns.start // block, -(-piece.columns.stop // block))
    if tensor.is_contiguous():
        return tensor.view(-1, -(-width // block))[piece.rows, columns]
    return tensor[piece.rows].reshape(-1, width)[:, columns]


def write(tensor: Tensor, piece: Piece, width: int, values: Tensor, block: int = 1) -> None:
    """Put a piece back; nothing happens where `values` is the very memory of the piece."""
    if tensor.is_contiguous():
        target = read(tensor, piece, width, block)
        if values.data_ptr() != target.data_ptr() or values.dtype != target.dtype:
            target.copy_(values)
        return
    target = tensor[piece.rows]
    target.copy_(values.reshape(target.shape))


def exchange(amaxes: Iterable[tuple[Any, Tensor]]) -> None:
    """Make each amax the largest among the processes of its group, in one collective for each.

    Every process has to bring the same tensors in the same order.
    """
    groups: dict[Any, list[Tensor]] = {}
    for group, amax in amaxes:
        groups.setdefault(group, []).append(amax)
    for group, found in groups.items():
        together = torch.stack(found)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX, group=group)
        for amax, largest in zip(found, together, strict=True):
            amax.copy_(largest)
