"""Which elements of a tensor share one scale. Imports no torch.

The shape of the scales follows from the shape of the tensor. For a tensor of shape (6, 300):

    PerTensor()          ()         one scale
    PerAxis(-1)          (6, 1)     one per row: the axis named is the one that the amax runs over
    PerBlock(128)        (6, 3)     one per run of 128 along the last axis; the last run has 44
    PerTile(128, 128)    (1, 3)     one per tile of the last two axes; the last tiles are short
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor, 0-dim."""

    def __str__(self) -> str:
        return "tensor"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a tensor of this shape."""
        return ()


@dataclass(frozen=True)
class PerAxis:
    """One scale for each slice along `axis`: the amax runs over that axis alone.

    With the default a slice is a row, which in a product is what meets one column.

    Raises:
        TypeError: axis is not an int.
    """

    axis: int = -1

    def __post_init__(self) -> None:
        _check_int(self, "axis", self.axis)

    def __str__(self) -> str:
        return "row" if self.axis == -1 else f"axis {self.axis}"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As the tensor's, with one element along `axis`; a 0-dim tensor has one scale.

        Raises:
            ValueError: the tensor has no such axis.
        """
        if not shape and self.axis in (-1, 0):
            return ()
        axis = _axis_of(self, self.axis, shape)
        return (*shape[:axis], 1, *shape[axis + 1 :])


@dataclass(frozen=True)
class PerBlock:
    """One scale for each run of `size` elements along `axis`; the last run may be shorter.

    Raises:
        TypeError: size or axis is not an int.
        ValueError: size is below 1.
    """

    size: int
    axis: int = -1

    def __post_init__(self) -> None:
        _check_int(self, "size", self.size)
        _check_int(self, "axis", self.axis)
        if self.size < 1:
            raise ValueError(f"PerBlock: size is {self.size}; expected 1 or more")

    def __str__(self) -> str:
        return f"1x{self.size}" + ("" if self.axis == -1 else f" axis {self.axis}")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As the tensor's, with one element along `axis` for each run.

        Raises:
            ValueError: the tensor has no such axis.
        """
        axis = _axis_of(self, self.axis, shape)
        return (*shape[:axis], -(-shape[axis] // self.size), *shape[axis + 1 :])


@dataclass(frozen=True)
class PerTile:
    """One scale for each tile of `rows` x `columns` of the last two axes; the last may be smaller.

    Raises:
        TypeError: rows or columns is not an int.
        ValueError: rows or columns is below 1.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("columns", self.columns)):
            _check_int(self, name, value)
            if value < 1:
                raise ValueError(f"PerTile: {name} is {value}; expected 1 or more")

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As the tensor's, with one element for each tile along the last two axes.

        Raises:
            ValueError: the tensor has fewer than two axes.
        """
        if len(shape) < 2:
            raise ValueError(
                f"PerTile({self.rows}, {self.columns}): the tensor has shape {tuple(shape)}; "
                "expected two dimensions or more, so use PerBlock or PerTensor"
            )
        return (*shape[:-2], -(-shape[-2] // self.rows), -(-shape[-1] // self.columns))


Granularity = PerTensor | PerAxis | PerBlock | PerTile


def _check_int(granularity: object, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(granularity).__name__
        raise TypeError(f"{kind}: {name} is {value!r}; expected an int")


def _axis_of(granularity: object, axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{granularity!r}: the tensor has shape {tuple(shape)} and no axis {axis}; "
            "name one that it has, or use PerTensor"
        )
    return axis % len(shape)


def parse_granularity(text: str) -> Granularity | None:
    """The granularity whose `str` is this text: "tensor", "row", "1x32" or "16x16"; else None.

    Those along another axis than the last are not parsed.
    """
    if text == "tensor":
        return PerTensor()
    if text == "row":
        return PerAxis()
    rows, _, columns = text.partition("x")
    if not re.fullmatch(r"[0-9]{1,18}x[0-9]{1,18}", text):
        return None
    return PerBlock(int(columns)) if rows == "1" else PerTile(int(rows), int(columns))
