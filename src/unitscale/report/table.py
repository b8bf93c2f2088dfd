"""Tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unitscale.report.summary import TITLES, summarize


def comparison_table(results: Mapping[str, Any]) -> Table:
    """The table of a results.json, one row per recipe; a diverged one is red."""
    table = Table(
        title=headline(results), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0
    )
    for index, title in enumerate(TITLES):
        table.add_column(title, justify="right" if 0 < index < len(TITLES) - 1 else "left")
    for summary in summarize(results["runs"]):
        table.add_row(*summary.cells(), style="red" if summary.diverged else None)
    return table


def headline(results: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    seeds = len({run["seed"] for run in results["runs"]})
    return (
        f"{results['model']} model on {results['data']}: {results['steps']} steps, "
        f"{seeds} seed{'' if seeds == 1 else 's'}; losses in nats a byte"
    )


def plain_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Any rows that share their keys, with the keys as titles; numbers to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
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
