"""A recording as data: rows of statistics to one series per tensor and direction.

Reads what `record.record` leaves (rows, or its JSONL or Parquet file) and the rows of `us.units`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from unitscale.formats import E4M3FN, E5M2, FloatFormat
from unitscale.recipes import Recipe
from unitscale.recipes import parse as parse_recipe
from unitscale.report.operand import operand_of
from unitscale.report.parquet import SUFFIX, read_parquet
from unitscale.report.shape import HEADER, ROW, WHAT_IF, Field, check, parse
from unitscale.report.version import check_version

Row = Mapping[str, Any]

DIRECTIONS = ("value", "gradient", "state")

VERSION = 1
"""The newest format of a recording that is read here; its first line says no number yet."""


@dataclass(frozen=True)
class FormatLimits:
    """The range of a number format."""

    max: float
    min_normal: float
    min_subnormal: float

    @classmethod
    def of(cls, fmt: FloatFormat) -> Self:
        """The range of one of our formats."""
        return cls(fmt.max, fmt.min_normal, fmt.min_subnormal)


DEFAULT_FORMATS = {fmt.name: FormatLimits.of(fmt) for fmt in (E4M3FN, E5M2)}
"""What rows without formats of their own are drawn against."""


@dataclass
class Series:
    """One tensor in one direction: its rows in order of step."""

    name: str
    op: str
    direction: str
    rows: list[Row] = field(default_factory=list)

    @property
    def label(self) -> str:
        """How the tensor is called in a sentence."""
        return self.name if self.direction == "value" else f"{self.name} ({self.direction})"

    @property
    def layer(self) -> str:
        """The module that a person would name: the path up to the first number in it."""
        parts = self.name.split("#")[0].split(":")[0].split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                return ".".join(parts[: i + 1])
        return ".".join(parts[:-1]) or self.name


@dataclass
class Recording:
    """Series, and the formats that they were judged in.

    Values come first, in the order of the model, then gradients in the same order (they appear from
    the loss backward), then the optimizer's state. `recipe` is that of the run; None if it is not
    known, as it is not from the rows alone. `recipe_name` is what the run called it. `what_if` are
    the rows of what other recipes would make of the products.
    """

    formats: dict[str, FormatLimits]
    series: list[Series]
    label: str = ""
    recipe: Recipe | None = None
    what_if: Sequence[Row] = ()
    recipe_name: str | None = None

    @property
    def steps(self) -> list[int]:
        """Every step that has a row."""
        return sorted({row["step"] for series in self.series for row in series.rows})

    def format_for(self, direction: str) -> str:
        """The format that a direction is judged in: the recipe's, if rows have its shares.

        Else the first of the formats, and for gradients the last.
        """
        is_gradient = direction == "gradient"
        if self.recipe is not None:
            operand = self.recipe.gradient if is_gradient else self.recipe.value
            if operand.element is not None and operand.element.name in self.formats:
                return operand.element.name
        return list(self.formats)[-1 if is_gradient else 0]

    def format_of(self, row: Row) -> str:
        """The format that a row is judged in: of its elements as it is rounded, if that is known.

        Else that of its direction.
        """
        operand = operand_of(row, self.recipe)
        element = None if operand is None else operand.element
        if element is not None and element.name in self.formats:
            return element.name
        return self.format_for(row["direction"])


def lost_fraction(row: Row, format_name: str) -> float | None:
    """Share of a tensor's values that a format flushes to zero or saturates; None if unknown."""
    shares = row.get("formats", {}).get(format_name)
    if shares is None or shares["flushed"] is None:
        return None
    return float(shares["flushed"] + shares["saturated"])


def group(
    rows: Iterable[Any], *, label: str = "", recipe: str | None = None, source: str = "row"
) -> Recording:
    """Rows of any of the known kinds to a recording.

    Args:
        recipe: the name of the run's recipe; unless given, that in the line with the formats. A
            name of another version counts as none.
        source: what an error calls a row, before its number.
    Raises:
        TypeError: a row is neither of `record.record` nor of `us.units`.
        ValueError: a row lacks something, or a value in it is of another kind.
    """
    formats: dict[str, FormatLimits] = {}
    found: dict[tuple[str, str], Series] = {}
    answers: list[Row] = []
    for number, given in enumerate(rows, 1):
        for row in unfold(given):
            if "what_if" in row:
                check(row, WHAT_IF, f"{source} {number}")
                answers.append(row)
                continue
            is_header = "name" not in row and "formats" in row
            check(row, HEADER if is_header else ROW, f"{source} {number}")
            if is_header:
                check_version(row.get("version"), VERSION, f"{source} {number}")
                formats = {
                    name: FormatLimits(**{k: limits[k] for k in FormatLimits.__annotations__})
                    for name, limits in row["formats"].items()
                }
                recipe = recipe or row.get("recipe")
                continue
            key = row["name"], row["direction"]
            series = found.setdefault(key, Series(row["name"], row["op"], row["direction"]))
            series.rows.append(row)
    for series in found.values():
        series.rows.sort(key=lambda row: row["step"])
    place: dict[str, int] = {}
    for name in (*(n for n, direction in found if direction == "value"), *(n for n, _ in found)):
        place.setdefault(name, len(place))
    ordered = sorted(
        found.values(), key=lambda one: (DIRECTIONS.index(one.direction), place[one.name])
    )
    known = known_recipe(recipe)
    return Recording(formats or DEFAULT_FORMATS, ordered, label, known, answers, recipe)


def known_recipe(name: str | None) -> Recipe | None:
    """The recipe of a name, `fp8-cscale(3)` too; None for one of another version, or one's own."""
    try:
        return None if name is None else parse_recipe(name)
    except ValueError:
        return None


def unfold(given: Any) -> Iterator[Row]:
    """A row as it is; a unit's row as up to two, its value and its gradient."""
    if isinstance(given, Mapping):
        yield given
        return
    if not hasattr(given, "grad_rms"):
        raise TypeError(
            f"a row is a {type(given).__name__}; expected the rows of record.record or us.units"
        )
    halves = (
        ("value", given.rms, given.amax, -math.log2(given.s)),
        ("gradient", given.grad_rms, given.grad_amax, math.log2(given.phi)),
    )
    for direction, rms, amax, held_log2 in halves:
        if rms is not None:
            yield {
                "step": 0,
                "name": given.name,
                "op": given.op,
                "direction": direction,
                "rms": rms,
                "amax": amax,
                "held_log2": held_log2,
            }


def read_rows(path: Path, fields: Mapping[str, Field] = MappingProxyType({})) -> Iterator[Row]:
    """The objects in the whole lines of a JSONL file, one at a time, without their checksums.

    Those are for whoever goes on with the file; a part of it can be read too.

    Raises:
        ValueError: a line is not JSON, no object, or lacks one of the fields.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # what a killed process left
            where = f"{path}: line {number}"
            row = parse(line, where)
            check(row, fields, where)
            row.pop("crc", None)
            yield row


def read_recording(path: Path, *, label: str = "", recipe: str | None = None) -> Recording:
    """The recording in a JSONL file, or in a Parquet file by its name.

    Raises:
        ValueError: it is damaged or of another kind; pyarrow is needed and not installed.
        OSError: the file cannot be read.
    """
    is_parquet = path.suffix == SUFFIX
    rows = read_parquet(path) if is_parquet else read_rows(path)
    source = f"{path}: {'row' if is_parquet else 'line'}"
    return group(rows, label=label, recipe=recipe, source=source)


def thin(recording: Recording, max_steps: int, keep: Sequence[int] = ()) -> Recording:
    """The same with at most about `max_steps` steps, evenly spread: the ends and `keep` stay."""
    steps = recording.steps
    if len(steps) <= max_steps:
        return recording
    chosen = {steps[round(i * (len(steps) - 1) / max(max_steps - 1, 1))] for i in range(max_steps)}
    chosen |= {step for step in keep if step in steps}
    series = [
        Series(s.name, s.op, s.direction, [row for row in s.rows if row["step"] in chosen])
        for s in recording.series
    ]
    return replace(recording, series=[s for s in series if s.rows])
