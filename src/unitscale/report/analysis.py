"""The result of an analysis as tables: for a terminal (`plain_table`) and as one HTML file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from unitscale.report.table import cell

Row = Mapping[str, Any]

PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>unitscale: $title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: auto; padding: 1rem }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums }
  th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
  th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
</style>
<h1>$title</h1>
<p>$caption</p>
<h2>Share of tensors with RMS in [1/2, 2]</h2>
$ranges
<h2>Share of elements that a format loses</h2>
$losses
<h2>Left at (1, 1), and why</h2>
$left
<h2>Tensors, the furthest from 1 first</h2>
$tensors
</html>
""")


def caption(results: Mapping[str, Any]) -> str:
    """What was analysed, in one line."""
    graphs = results["graphs"]
    return (
        f"{results['model']}: {results['parameters']:,} parameters, {len(results['tensors'])} "
        f"tensors in {graphs} graph{'' if graphs == 1 else 's'}, loss {results['loss']:.4g}"
    )


def range_rows(results: Mapping[str, Any]) -> list[Row]:
    """Share of tensors in range, before and after."""
    return [
        {"RMS in [1/2, 2]": kind, "before": percent(s["before"]), "after": percent(s["after"])}
        for kind, s in results["share_in_range"].items()
    ]


def loss_rows(results: Mapping[str, Any]) -> list[Row]:
    """Share of all elements that each format flushes to zero and saturates, before and after."""
    rows: list[Row] = []
    for kind, key in (("values", "value_loss"), ("gradients", "grad_loss")):
        tensors = [tensor for tensor in results["tensors"] if tensor[key]]
        total = sum(tensor["elements"] for tensor in tensors)
        for fmt in dict.fromkeys(name for tensor in tensors for name in tensor[key]):

            def share(loss: str, fmt: str = fmt, key: str = key) -> str:
                lost = sum(t["elements"] * t[key][fmt][loss] for t in tensors)  # noqa: B023
                return percent(lost / total if total else None)  # noqa: B023

            rows.append(
                {
                    "elements lost": f"{kind} in {fmt}",
                    "to zero before": share("flushed_before"),
                    "after": share("flushed_after"),
                    "saturated before": share("saturated_before"),
                    "after ": share("saturated_after"),
                }
            )
    return rows


def left_rows(results: Mapping[str, Any]) -> list[Row]:
    """How many tensors kept 1 for a part of their unit, by reason."""
    reasons: dict[str, list[str]] = {}
    for tensor in results["tensors"]:
        if tensor["reason"] is not None:
            reasons.setdefault(tensor["reason"], []).append(tensor["name"])
    return [
        {"left at (1, 1) because": reason, "tensors": len(names), "such as": names[0]}
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]


def tensor_rows(results: Mapping[str, Any], limit: int | None = None) -> list[Row]:
    """One row per tensor, the furthest from RMS 1 first; losses are those in FP8."""
    tensors = sorted(results["tensors"], key=distance, reverse=True)
    return [
        {
            "tensor": tensor["name"],
            "rms": short(tensor["rms"]["before"]),
            "held": short(tensor["rms"]["after"]),
            "grad": short(tensor["grad_rms"]["before"]),
            "carried": short(tensor["grad_rms"]["after"]),
            "lost": change(tensor["value_loss"].get("E4M3FN")),
            "grad lost": change(tensor["grad_loss"].get("E5M2")),
            "note": tensor["reason"] or "",
        }
        for tensor in tensors[:limit]
    ]


def distance(tensor: Row) -> float:
    """How many powers of two the value or the gradient is away from RMS 1, before."""
    values = (tensor["rms"]["before"], tensor["grad_rms"]["before"])
    return max((abs(math.log2(v)) for v in values if v and math.isfinite(v)), default=0.0)


def percent(share: float | None) -> str:
    """A share in percent, with enough digits to tell it from zero."""
    if share is None:
        return "–"
    return f"{share:.0%}" if share in (0.0, 1.0) else f"{share:.2%}"


def short(value: float | None) -> str:
    """Three digits."""
    return "–" if value is None else f"{value:.3g}"


def change(loss: Row | None) -> str:
    """Share lost at either end, before and after."""
    if loss is None:
        return "–"
    before, after = (
        loss[f"flushed_{when}"] + loss[f"saturated_{when}"] for when in ("before", "after")
    )
    return f"{before:.1%} → {after:.1%}"


def write_analysis(results: Mapping[str, Any], path: Path) -> None:
    """Write everything as one HTML file that fetches nothing."""
    page = PAGE.substitute(
        title=escape(f"Scales of {results['model']}"),
        caption=escape(caption(results)),
        ranges=html_table(range_rows(results)),
        losses=html_table(loss_rows(results)),
        left=html_table(left_rows(results)),
        tensors=html_table(tensor_rows(results)),
    )
    path.write_text(page, encoding="utf-8")


def html_table(rows: Sequence[Row]) -> str:
    """Rows that share their keys, as a table."""
    if not rows:
        return "<p>None.</p>"

    def line(tag: str, values: Iterable[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell(v))}</{tag}>" for v in values) + "</tr>"

    body = "\n".join(line("td", row.values()) for row in rows)
    return f"<table><thead>{line('th', rows[0])}</thead><tbody>\n{body}\n</tbody></table>"
