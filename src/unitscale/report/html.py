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

from unitscale.report.atomic import write_text
from unitscale.report.curve import FINAL, Curve
from unitscale.report.extra import imported
from unitscale.report.page import page_data
from unitscale.report.recording import Recording, group
from unitscale.report.summary import TITLES, headline, outcome, summarize_results
from unitscale.report.table import cell
from unitscale.report.verdict import Loss, Verdict, judge, percent
from unitscale.report.what_if import answers_of, recipe_rows, sentences

Products = Mapping[str, Sequence[tuple[str, str, str, str]]]
"""Recipe to its three products, each (product, left format, right format, result format)."""

WORST = 10
"""Tensors that the overview lists."""

TALL = 40
"""Rows from which on a table scrolls in a box of its own."""


def write_html(
    rows: Iterable[Any] | Sequence[Recording],
    path: Path | str,
    *,
    title: str = "Numerics of a run",
    subtitle: str | None = None,
    curves: Sequence[Curve] = (),
    results: Mapping[str, Any] | None = None,
    products: Products | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> None:
    """Write one self-contained HTML file: a verdict in words, and charts to look into it.

    Without plotly there are no charts; the page says so, and has everything else.

    Args:
        rows: rows of `record.record` (a line with the formats may be among them) or of
            `us.units`; or several recordings, which the page lets one choose from.
        subtitle: what the page is about, in a line; that of the results unless given.
        curves: losses of the runs.
        results: a results.json of `unitscale compare`, shown as a table.
        products: the matrix products of each recipe.
        tables: more tables by their title; the rows of one share their keys, which are its head.
        configuration: shown as JSON.
    Raises:
        TypeError, ValueError: a row is of another kind.
        OSError: the file cannot be written; what was there stays.
    """
    rows = list(rows)
    recordings = rows if rows and isinstance(rows[0], Recording) else [group(rows)] if rows else []
    recordings = [recording for recording in recordings if recording.series]
    if subtitle is None and results is not None:
        subtitle = headline(results)
    verdicts = [(recording, judge(recording)) for recording in recordings]
    charts, missing = "", ""
    if recordings or curves:
        try:
            charts = packed_plotly()
        except ValueError as error:  # a run that is trained is not to fail on its page
            missing = f"<p class='note'>The charts are left out: {escape(str(error))}</p>"
    parts = {
        "title": escape(title),
        "subtitle": "" if subtitle is None else f"<p class='note'>{escape(subtitle)}</p>",
        "lead": lead(verdicts, results, curves),
        "worst": worst_table(verdicts),
        "comparison": comparison(results),
        "what_if": "\n".join(what_if_section(recording) for recording in recordings),
        "products": products_table(products or {}),
        "tables": "\n".join(map(rows_table, tables, tables.values())) if tables else "",
        "configuration": configuration_of(configuration),
        "style": asset("page.css"),
        "script": asset("page.js") + asset("what_if.js"),
        "data": pack(json.dumps(page_data(recordings, curves), separators=(",", ":"))),
        "plotly": charts,
        "missing": missing,
    }
    write_text(Path(path), Template(asset("page.html")).substitute(parts))


def asset(name: str) -> str:
    """A file that lies beside this one."""
    return (files("unitscale.report") / name).read_text(encoding="utf-8")


def pack(text: str) -> str:
    """Text compressed and in base64, as an HTML file can hold it."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """Plotly's script, from the Python package of that name.

    Raises:
        ValueError: it is not installed.
    """
    imported("plotly")
    return pack((files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"))


Verdicts = Sequence[tuple[Recording, Verdict]]


def lead(verdicts: Verdicts, results: Mapping[str, Any] | None, curves: Sequence[Curve]) -> str:
    """What is wrong, first: a paragraph per recording, and one for the losses of all runs."""
    found = [(recording.label, verdict.paragraph) for recording, verdict in verdicts]
    ended = [] if results is None else [outcome(summarize_results(results))]
    compared = [("", " ".join(filter(None, [*ended, *blank_losses(curves)])))]
    paragraphs = [*found, *compared] if len(found) == 1 else [*compared, *found]
    texts = [
        (f"<b>{escape(label)}</b>: " if label and len(found) > 1 else "") + escape(text)
        for label, text in paragraphs
        if text
    ]
    return "\n".join(f"<p>{text}</p>" for text in texts or ["No step has finished yet."])


def blank_losses(curves: Sequence[Curve]) -> list[str]:
    """A sentence for every recipe whose loss was no number, with the step of each run."""
    steps: dict[str, list[int]] = {}
    for curve in curves:
        if curve.first_blank is not None:
            steps.setdefault(curve.recipe, []).append(curve.first_blank)
    return [
        f"The training loss of {recipe} is no number at step {' and '.join(map(str, found))}"
        f"{f' ({len(found)} runs)' if len(found) > 1 else ''}."
        for recipe, found in steps.items()
    ]


def worst_table(verdicts: Verdicts) -> str:
    """The operands that lose most, of the runs that round them."""
    losses = sorted(
        ((recording.label, loss) for recording, verdict in verdicts for loss in verdict.losses),
        key=lambda pair: -pair[1].share,
    )[:WORST]
    if not losses:
        return ""
    with_label = len(verdicts) > 1
    titles = ["tensor", "format", "flushed", "saturated", "worst at step", "over 1 % from step"]
    if all(len(recording.steps) == 1 for recording, _ in verdicts):
        titles = titles[:4]

    def texts(loss: Loss) -> list[str]:
        return [
            loss.series.label,
            loss.format,
            percent(loss.flushed),
            percent(loss.saturated),
            str(loss.step),
            str(loss.began),
        ][: len(titles)]

    rows = [[label, *texts(loss)] if with_label else texts(loss) for label, loss in losses]
    return section("Worst tensors", table(["run", *titles] if with_label else titles, rows))


def comparison(results: Mapping[str, Any] | None) -> str:
    """The table of recipes."""
    if results is None or not results.get("runs"):
        return ""
    summaries = summarize_results(results)
    note = (
        f"Ranges are ± one standard deviation over seeds. The train loss is {FINAL}. Of a "
        "difference to fp32, “of which format” is the part that the number formats make: the "
        "difference to the recipe with the same parametrization that rounds nothing (fp32-units "
        "for a unit-scaled model, else fp32). “In range” is the share of tensors whose "
        "RMS lies in [1/2, 2] at the first step, and “saved for backward” what autograd held at "
        "the end of its forward pass, parameters apart."
    )
    classes = ["diverged" if summary.diverged else "finished" for summary in summaries]
    body = table(TITLES, [summary.cells() for summary in summaries], classes)
    return section("Recipes side by side", f"{body}\n<p class='note'>{note}</p>")


def what_if_section(recording: Recording) -> str:
    """What other recipes would make of a run: the verdict, and a row for each recipe."""
    if not recording.what_if:
        return ""
    label = f": {recording.label}" if recording.label else ""
    said = "\n".join(f"<p>{escape(text)}</p>" for text in sentences(recording.what_if))
    rows = recipe_rows(answers_of(recording.what_if))
    body = table(list(rows[0]), [list(row.values()) for row in rows])
    return section(f"What other recipes would do{label}", f"{said}\n{body}")


def products_table(products: Products) -> str:
    """The three products of each recipe: what is rounded to which format."""
    if not products:
        return ""
    rows = [(recipe, *row) for recipe, rows in products.items() for row in rows]
    body = table(("recipe", "product", "left operand", "right operand", "result"), rows)
    return section("Matrix products", body)


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows that share their keys, under a heading; one of many rows scrolls in a box."""
    if not rows:
        return ""
    return section(title, table(list(rows[0]), [list(row.values()) for row in rows]))


def configuration_of(configuration: Mapping[str, Any] | None) -> str:
    """The configuration, closed until it is asked for."""
    if configuration is None:
        return ""
    text = escape(json.dumps(configuration, indent=2))
    body = f"<summary>Configuration</summary>\n<pre>{text}</pre>"
    return f"<section><details>\n{body}\n</details></section>"


def section(title: str, body: str) -> str:
    """A heading and what is under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def table(
    titles: Sequence[str], rows: Sequence[Sequence[Any]], classes: Sequence[str] | None = None
) -> str:
    """An HTML table that scrolls sideways on a narrow screen."""
    texts = [[cell(value) for value in row] for row in rows]
    columns = ["text" if is_text(column) else "number" for column in zip(*texts, strict=True)]
    columns = columns or ["text"] * len(titles)
    head = "".join(
        f"<th scope='col' class='{kind}'>{escape(title)}</th>"
        for title, kind in zip(titles, columns, strict=True)
    )
    lines = [
        f"<tr{f' class={classes[i]!r}' if classes else ''}>"
        + "".join(
            f"<td class='{kind}'>{escape(text)}</td>"
            for text, kind in zip(row, columns, strict=True)
        )
        + "</tr>"
        for i, row in enumerate(texts)
    ]
    body = "\n".join(lines)
    tall = " tall" if len(rows) > TALL else ""
    return (
        f"<div class='scroll{tall}' tabindex='0'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def is_text(column: Sequence[str]) -> bool:
    """Whether a column holds names, which begin at the left, and not numbers."""
    return all(text[:1].isalpha() for text in column if text not in ("", "–"))
