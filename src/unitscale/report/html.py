"""report.html: one file that can be mailed, with everything inside and nothing fetched.

The verdict and the tables are plain HTML. Charts are drawn by Plotly, which goes into the file
compressed (4.8 MB are 2 MB that way) and is unpacked by the browser itself, and so are the data.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from unitscale.report.page import page_data
from unitscale.report.plot import Curve
from unitscale.report.recording import Recording, group
from unitscale.report.summary import TITLES, summarize
from unitscale.report.table import cell, headline
from unitscale.report.verdict import Loss, Verdict, judge, percent

Products = Mapping[str, Sequence[tuple[str, str, str, str]]]
"""Recipe to its three products, each (product, left format, right format, result format)."""

WORST = 10
"""Tensors that the overview lists."""


def write_html(
    rows: Iterable[Any] | Sequence[Recording],
    path: Path | str,
    *,
    title: str = "Numerics of a run",
    curves: Sequence[Curve] = (),
    results: Mapping[str, Any] | None = None,
    products: Products | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> None:
    """Write one self-contained HTML file: a verdict in words, and charts to look into it.

    Args:
        rows: rows of `numerics.record` (a line with the formats may be among them) or of
            `us.units`; or several recordings, which the page lets one choose from.
        curves: losses of the runs.
        results: a results.json of `unitscale compare`, shown as a table.
        products: the matrix products of each recipe.
        configuration: shown as JSON.
    Raises:
        TypeError: a row is of another kind.
    """
    rows = list(rows)
    recordings = rows if rows and isinstance(rows[0], Recording) else [group(rows)] if rows else []
    recordings = [recording for recording in recordings if recording.series]
    verdicts = [(recording, judge(recording)) for recording in recordings]
    parts = {
        "title": escape(title),
        "lead": lead(verdicts, results),
        "worst": worst_table(verdicts),
        "comparison": comparison(results),
        "products": products_table(products or {}),
        "configuration": ""
        if configuration is None
        else section("Configuration", f"<pre>{escape(json.dumps(configuration, indent=2))}</pre>"),
        "style": asset("page.css"),
        "script": asset("page.js"),
        "data": pack(json.dumps(page_data(recordings, curves), separators=(",", ":"))),
        "plotly": packed_plotly() if recordings or curves else "",
    }
    Path(path).write_text(Template(asset("page.html")).substitute(parts), encoding="utf-8")


def asset(name: str) -> str:
    """A file that lies beside this one."""
    return (files("unitscale.report") / name).read_text(encoding="utf-8")


def pack(text: str) -> str:
    """Text compressed and in base64, as an HTML file can hold it."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """Plotly's script, from the Python package of that name."""
    return pack((files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"))


Verdicts = Sequence[tuple[Recording, Verdict]]


def lead(verdicts: Verdicts, results: Mapping[str, Any] | None) -> str:
    """The first paragraph: what is wrong; for several recordings one paragraph each."""
    paragraphs = [] if results is None else [("", headline(results))]
    found = [(recording.label, verdict.paragraph) for recording, verdict in verdicts]
    paragraphs = [*found, *paragraphs] if len(found) == 1 else [*paragraphs, *found]
    return "\n".join(
        f"<p>{f'<b>{escape(label)}</b>: ' if label and len(found) > 1 else ''}{escape(text)}</p>"
        for label, text in paragraphs
    )


def worst_table(verdicts: Verdicts) -> str:
    """The tensors that lose most, over all recordings."""
    losses = sorted(
        ((recording.label, loss) for recording, verdict in verdicts for loss in verdict.losses),
        key=lambda pair: -pair[1].share,
    )[:WORST]
    if not losses:
        return ""
    with_label = len(verdicts) > 1
    titles = ["tensor", "format", "flushed", "saturated", "worst at step", "over 1 % from step"]

    def texts(loss: Loss) -> list[str]:
        return [
            loss.series.label,
            loss.format,
            percent(loss.flushed),
            percent(loss.saturated),
            str(loss.step),
            str(loss.began),
        ]

    rows = [[label, *texts(loss)] if with_label else texts(loss) for label, loss in losses]
    return section("Worst tensors", table(["run", *titles] if with_label else titles, rows))


def comparison(results: Mapping[str, Any] | None) -> str:
    """The table of recipes."""
    if results is None or not results.get("runs"):
        return ""
    summaries = summarize(results["runs"])
    note = (
        "Ranges are ± one standard deviation over seeds. “In range” is the share of tensors whose "
        "RMS lies in [1/2, 2] at the first step, and “saved for backward” what autograd held at "
        "the end of its forward pass, parameters apart."
    )
    classes = ["diverged" if summary.diverged else "finished" for summary in summaries]
    body = table(TITLES, [summary.cells() for summary in summaries], classes)
    return section("Recipes side by side", f"{body}\n<p class='note'>{note}</p>")


def products_table(products: Products) -> str:
    """The three products of each recipe: what is rounded to which format."""
    if not products:
        return ""
    rows = [(recipe, *row) for recipe, rows in products.items() for row in rows]
    body = table(("recipe", "product", "left operand", "right operand", "result"), rows)
    return section("Matrix products", body)


def section(title: str, body: str) -> str:
    """A heading and what is under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def table(
    titles: Sequence[str], rows: Sequence[Sequence[Any]], classes: Sequence[str] | None = None
) -> str:
    """An HTML table that scrolls sideways on a narrow screen."""
    head = "".join(f"<th scope='col'>{escape(title)}</th>" for title in titles)
    lines = [
        f"<tr{f' class={classes[i]!r}' if classes else ''}>"
        + "".join(f"<td>{escape(cell(value))}</td>" for value in row)
        + "</tr>"
        for i, row in enumerate(rows)
    ]
    body = "\n".join(lines)
    return (
        f"<div class='scroll' tabindex='0'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
