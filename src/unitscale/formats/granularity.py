"""Which elements of a tensor share one scale. Imports no torch."""

from dataclasses import dataclass

__all__ = ["Granularity", "PerAxis", "PerBlock", "PerTensor", "PerTile", "parse_granularity"]


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def __str__(self) -> str:
        return "tensor"


@dataclass(frozen=True)
class PerAxis:
    """One scale for each slice along `axis`: at the last axis, one for each row."""

    axis: int = -1

    def __str__(self) -> str:
        return "row" if self.axis == -1 else f"axis({self.axis})"


@dataclass(frozen=True)
class PerBlock:
    """One scale for each run of `size` elements along `axis`; the last run may be shorter.

    Raises:
        ValueError: size is less than 1.
    """

    size: int
    axis: int = -1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"PerBlock: size is {self.size}; expected 1 or more")

    def __str__(self) -> str:
        return f"1x{self.size}" if self.axis == -1 else f"1x{self.size}({self.axis})"


@dataclass(frozen=True)
class PerTile:
    """One scale for each tile over the last two axes; tiles at the end may be smaller.

    Raises:
        ValueError: rows or columns are less than 1.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(
                f"PerTile: {self.rows} rows and {self.columns} columns; expected 1 or more of both"
            )

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


Granularity = PerTensor | PerAxis | PerBlock | PerTile


def parse_granularity(text: str) -> Granularity | None:
    """The granularity that `str` gives this text; None of a text that is none.

    Only what is along the last axis has a text that is parsed: "tensor", "row", "1x32", "16x16".
    """
    if text == "tensor":
        return PerTensor()
    if text == "row":
        return PerAxis()
    rows, cross, columns = text.partition("x")
    if not (cross and rows.isdigit() and columns.isdigit()):
        return None
    return PerBlock(int(columns)) if rows == "1" else PerTile(int(rows), int(columns))
