"""Tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unitscale.report.cost import COST_TITLES, cost_rows
from unitscale.report.curve import FINAL
from unitscale.report.extra import imported
from unitscale.report.summary import TITLES, headline, summarize_results

if TYPE_CHECKING:
    from rich.table import Table


def comparison_table(results: Mapping[str, Any]) -> "Table":
    """The table of a results.json, one row per recipe; a diverged one is red.

    Raises:
        ValueError: rich is not installed.
    """
    title = f"{headline(results)}; train loss: {FINAL}"
    table = new_table(title=title, title_justify="left", padding=0)
    for index, title in enumerate(TITLES):
        table.add_column(title, justify="right" if 0 < index < len(TITLES) - 1 else "left")
    for summary in summarize_results(results):
        table.add_row(*summary.cells(), style="red" if summary.diverged else None)
    return table


def cost_table(results: Mapping[str, Any]) -> "Table":
    """What each recipe of a results.json costs beside its loss, one row per recipe.

    Speed is that of this machine, against the baseline of the same comparison; passes are of one
    linear layer, forward and backward.

    Raises:
        ValueError: rich is not installed.
    """
    table = new_table(
        title="time and saved bytes of the whole model; passes of one linear layer",
        title_justify="left",
    )
    for index, title in enumerate(COST_TITLES):
        table.add_column(title, justify="right" if 0 < index < 5 else "left")
    for row in cost_rows(results):
        table.add_row(*row)
    return table


def new_table(**options: Any) -> "Table":
    """An empty table with a line under its head."""
    found: Table = imported("rich.table").Table(
        box=imported("rich.box").SIMPLE_HEAD, pad_edge=False, **options
    )
    return found


def plain_table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """Any rows that share their keys, with the keys as titles; numbers to the right.

    Raises:
        ValueError: rich is not installed.
    """
    table = new_table()
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*map(cell, row.values()))
    return table


def cell(value: Any) -> str:
    """The text of a value: four digits of a fraction, a tick for true and nothing for false."""
    if isinstance(value, bool):
        return "✓" if value else ""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
