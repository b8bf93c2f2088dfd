"""The result of an analysis as tables: for a terminal (`plain_table`) and as one HTML file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unitscale.report.html import write_html
from unitscale.report.what_if import answers_of, sentences, worst_rows
from unitscale.report.what_if import recipe_rows as rows_of_recipes

Row = Mapping[str, Any]


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
    """How many tensors kept 1 for a part of their unit, by reason.

    Which part: "s" of the tensor itself, "phi" of its gradient; the other may have a unit.
    """
    reasons: dict[tuple[str, str], list[str]] = {}
    for tensor in results["tensors"]:
        if tensor["reason"] is not None:
            kept = " and ".join(half for half in ("s", "phi") if tensor[half] == 1)
            # A reason may stand beside a unit that was measured: then nothing was left at 1.
            if kept:
                reasons.setdefault((tensor["reason"], kept), []).append(tensor["name"])
    return [
        {"left at 1": kept, "because": reason, "tensors": len(names), "such as": names[0]}
        for (reason, kept), names in sorted(reasons.items(), key=lambda item: -len(item[1]))
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


def recipe_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row per recipe of the what-if: its products, and the decibels of their results."""
    return list(rows_of_recipes(answers_of(results["what_if"])))


def product_rows(results: Mapping[str, Any], limit: int | None = None) -> list[Row]:
    """One row per product, a column per recipe; the decibels of its worst result."""
    return list(worst_rows(answers_of(results["what_if"]), limit))


def what_if_sentences(results: Mapping[str, Any]) -> list[str]:
    """The verdict on the recipes, and what nothing could be said of."""
    rows = results["what_if"]
    if not rows:
        return list(results["what_if_notes"])
    return sentences(rows)


def skip_sentence(found: Mapping[str, Any]) -> str:
    """The modules to keep in full precision, as an argument."""
    recipe, least = found["recipe"], found["smallest_share"]
    whole = f"{recipe} rounds {found['rounded_share']:.1%} of the multiply-adds of the model"
    if not found["skip"] and least is None:
        return f"{whole}, in no module that skip= could name."
    if not found["skip"]:
        return (
            f"For {recipe} no module fits into a budget of {found['budget']:.1%} of the "
            f"multiply-adds that it rounds: the smallest has {least:.1%}, so give --budget "
            f"{math.ceil(1000 * least) / 1000:g} or more ({whole})."
        )
    return (
        f"For {recipe}, best first, with {found['share_of_multiply_adds']:.1%} of the "
        f"multiply-adds that it rounds in full precision ({whole}): skip={found['skip']!r}"
        + predicted(found)
    )


def predicted(found: Mapping[str, Any]) -> str:
    """What the whole list is predicted to save, in words; "" where results do not say."""
    gains = found.get("gains")
    if not gains or not gains[0]["error_before"]:
        return ""
    before, after = gains[0]["error_before"], gains[-1]["error_after"]
    return (
        f". Predicted movement of the loss by rounding: {short(before)} without the list, "
        f"{short(after)} with it ({after / before - 1:.0%})."
    )


def gain_rows(found: Mapping[str, Any]) -> list[Row]:
    """One row per pattern of the skip list: what it is predicted to save, after those above it."""
    return [
        {
            "kept in full precision": gain["pattern"],
            "error before": short(gain["error_before"]),
            "error after": short(gain["error_after"]),
            "multiply-adds": f"{gain['share']:.1%}",
        }
        for gain in found.get("gains", ())
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
    """Write everything as the one HTML file of `write_html`, with the tables of the terminal."""
    said: dict[str, Any] = {}
    if "what_if_notes" in results:
        said["What other recipes would do"] = [
            {"": sentence} for sentence in what_if_sentences(results)
        ]
    if "suggest_skip" in results:
        found = results["suggest_skip"]
        said["Modules to keep in full precision"] = [{"": skip_sentence(found)}]
        if found["skip"]:
            said["What each is predicted to save, of the movement of the loss"] = gain_rows(found)
    write_html(
        [{"formats": results["formats"]}, *recorded_rows(results), *results.get("what_if", ())],
        path,
        title=f"Scales of {results['model']}",
        subtitle=caption(results),
        tables=said
        | {
            "Share of tensors with RMS in [1/2, 2]": range_rows(results),
            "Share of elements that a format loses": loss_rows(results),
            "Left at 1, and why": left_rows(results),
            "Tensors before and after units, the furthest from 1 first": tensor_rows(results),
        },
    )


def recorded_rows(results: Mapping[str, Any]) -> list[Row]:
    """The tensors as rows of a recording, at step 0: values, then gradients."""
    return [
        {"step": 0, "name": tensor["name"], "op": tensor["op"], "direction": direction}
        | tensor["statistics"][direction]
        for direction in ("value", "gradient")
        for tensor in results["tensors"]
        if direction in tensor["statistics"]
    ]
