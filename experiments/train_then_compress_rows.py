"""The rows of train_then_compress.py: which of them, and what a compression added to a loss."""

from collections.abc import Callable, Iterable
from statistics import mean, stdev
from typing import Any

from train_then_compress import BUDGETS
from train_then_compress_pack import FP8, FULL

Row = dict[str, Any]

WIDTHS = (16, 32, 64, 128)
EQUAL_TIME = BUDGETS[1]


def of_part(rows: list[Row], part: str, **own: Any) -> list[Row]:
    """The runs of one part that did not diverge, in the order of the ladder."""
    found = [
        row
        for row in rows
        if row["part"] == part
        and row["loss"] is not None
        and all(row[name] == value for name, value in own.items())
    ]
    return sorted(found, key=lambda row: (row["width"], row["seed"]))


def widths_of(rows: Iterable[Row]) -> list[int]:
    return sorted({row["width"] for row in rows})


def shown(values: list[float], digits: int = 3) -> str:
    """A mean, the standard deviation of single runs, and their number."""
    if not values:
        return "–"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread} ({len(values)})"


def increase(row: Row, share: float, bits: int | str, rounds: int | None = None) -> float:
    """What a compression adds to the loss of its own model.

    Raises:
        KeyError: the run has no such compression.
    """
    rounds = int(share > 0) if rounds is None else rounds
    for one in row["compressed"]:
        if (one["share"], one["bits"], one["rounds"]) == (share, bits, rounds):
            return one["loss"] - row["loss"]
    raise KeyError(f"no compression to {share:.0%} zeros and {bits} bits in {rounds} rounds")


def words(share: float, bits: int | str, rounds: int = 1) -> str:
    """A compression in a few words."""
    number = {FULL: "FP16", FP8: "E4M3"}.get(bits, f"int{bits}")
    if not share:
        return number
    way = " in rounds" if rounds > 1 else ""
    return f"{share:.0%} zero{way}" + ("" if bits == FULL else f", {number}")


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)
    )


def plain_loss(row: Row) -> float:
    return row["loss"]


def paired(rows: list[Row], width: int, measure: Callable[[Row], float]) -> list[float]:
    """FP8 less FP32, seed by seed."""
    plain = {row["seed"]: row for row in of_part(rows, "steps", width=width)}
    return [
        measure(row) - measure(plain[row["seed"]])
        for row in of_part(rows, "fp8", width=width)
        if row["seed"] in plain
    ]
