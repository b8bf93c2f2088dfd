"""What recipes cost beside their losses: results.json to the rows of a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from unitscale.report.summary import BASELINE, summarize_results

__all__ = ["COST_TITLES", "cost_rows"]

COST_TITLES = (
    "recipe",
    "step time\nover fp32",
    "amax\npasses",
    "casts",
    "trans-\nposes",
    "saved\nover fp32",
    "chosen by a person",
    "hardware",
)


def cost_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The texts under `COST_TITLES`, a row per recipe; a results.json of before has dashes."""
    summaries = summarize_results(results)
    base = next((s for s in summaries if s.recipe == BASELINE), None)
    base_speed = None if base is None else base.tokens_per_s
    base_bytes = None if base is None else base.saved_bytes
    known = results.get("recipes", {})
    for summary in summaries:
        cost = known.get(summary.recipe, {})
        passes = cost.get("passes", {})
        yield (
            summary.recipe,
            ratio(base_speed, summary.tokens_per_s),
            *(str(passes.get(kind, "–")) for kind in ("amax", "casts", "transposes")),
            ratio(summary.saved_bytes, base_bytes),
            ", ".join(cost.get("chosen", ())) or "–",
            cost.get("hardware", "–"),
        )


def ratio(value: float | None, other: float | None) -> str:
    """One over the other; a dash where one of them is missing."""
    return f"{value / other:.2f}" if value and other else "–"
