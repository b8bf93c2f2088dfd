"""results.md: the tables of a sweep as Markdown. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from unitscale.report.wording import plural
from unitscale.sweep.interval import LEVEL
from unitscale.sweep.row import FAILED, FINISHED
from unitscale.sweep.summary import Group, best_rows, rate_rows


def as_markdown(
    groups: Sequence[Group], rows: Sequence[Mapping[str, Any]], *, title: str, planned: int
) -> str:
    """The whole page: the best rates, every rate, and the runs that did not finish."""
    parts = [f"# {title}", f"{len(rows)} of {plural(planned, 'run')} have ended."]
    if groups:
        parts += [
            f"Losses are means over seeds, in nats a byte, with Student's {LEVEL:.0%} interval; n "
            "is the number of seeds. A learning rate at which a seed diverged is not called best.",
            "## Best learning rates",
            table(best_rows(groups)),
            "## Every learning rate",
            table(rate_rows(groups)),
            "![validation loss over the learning rate](lr.png)",
        ]
    if bad := [row for row in rows if row["status"] != FINISHED]:
        parts += ["## Runs that diverged or failed", table(list(map(bad_row, bad)))]
    if any(row["status"] == FAILED for row in rows):
        parts += ["Failed runs are made again by `unitscale sweep ... --resume`."]
    return "\n\n".join(parts) + "\n"


def bad_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a run that has no loss to show."""
    return {"run": row["name"], "": row["status"], "reason": row["reason"]}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows that share their keys, numbers to the right."""
    titles = list(rows[0])
    rules = ["---:" if isinstance(value, int | float) else "---" for value in rows[0].values()]
    lines = [titles, rules, *([row[title] for title in titles] for row in rows)]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


def escaped(value: Any) -> str:
    """A cell without what would end it."""
    return str(value).replace("|", "\\|").replace("\n", " ")
