"""Runs to rows: one row per recipe, over its seeds, and the text of every cell.

A run is an entry of `runs` in results.json, with a `seed`. A row's numbers are means over its
seeds, and spreads are sample standard deviations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

Run = Mapping[str, Any]

BASELINE = "fp32"
KINDS = ("activations", "gradients", "weights")
TITLES = (
    "recipe",
    "valid\nloss",
    f"vs\n{BASELINE}",
    "train\nloss",
    "tokens/s",
    "saved for\nbackward",
    "in range, %\nact/grad/wt",
    "",
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation of the values that are numbers; None where there are too few."""

    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """The spread of some values, without those that are None."""
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        return cls(
            mean=mean(numbers) if numbers else None,
            std=stdev(numbers) if len(numbers) > 1 else None,
        )

    def text(self, sign: str = "") -> str:
        """As `1.652 ± 0.004`; `sign="+"` shows the sign of a positive mean too."""
        if self.mean is None:
            return "–"
        return f"{self.mean:{sign}.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One recipe over its seeds.

    `valid_loss_change` is the mean of the differences to the baseline's run of the same seed, which
    saw the same batches: its spread leaves out what the seeds share.
    """

    recipe: str
    seeds: int
    diverged: int
    valid_loss: Spread
    valid_loss_change: Spread
    final_train_loss: Spread
    tokens_per_s: float | None
    peak_bytes_saved_for_backward: float | None
    share_in_range: Mapping[str, float | None]

    def cells(self) -> tuple[str, ...]:
        """The texts under `TITLES`."""
        is_baseline = self.recipe == BASELINE
        return (
            self.recipe,
            self.valid_loss.text(),
            "" if is_baseline else self.valid_loss_change.text("+"),
            self.final_train_loss.text(),
            "–" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f}",
            bytes_text(self.peak_bytes_saved_for_backward),
            "/".join(percent(self.share_in_range.get(kind)) for kind in KINDS),
            self.note(),
        )

    def note(self) -> str:
        """Whether it diverged, and how often."""
        if not self.diverged:
            return ""
        return "diverged" + (f" ({self.diverged} of {self.seeds})" if self.seeds > 1 else "")


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """One summary per recipe, in order of first appearance."""
    recipes = dict.fromkeys(run["recipe"] for run in runs)
    baseline = {run["seed"]: run["valid_loss"] for run in runs if run["recipe"] == BASELINE}
    return [
        summarize_recipe([run for run in runs if run["recipe"] == recipe], baseline)
        for recipe in recipes
    ]


def outcome(summaries: Sequence[Summary]) -> str:
    """How a comparison ended, in words: the baseline's loss, and how far off each recipe is."""
    by_name = {summary.recipe: summary for summary in summaries}
    baseline = by_name.get(BASELINE)
    sentences = []
    if baseline is not None and baseline.valid_loss.mean is not None:
        sentences.append(f"{BASELINE} ends at a validation loss of {baseline.valid_loss.text()}.")
    known = [s for s in summaries if s.recipe != BASELINE and s.valid_loss_change.mean is not None]
    if known:
        parts = [f"{s.recipe} {s.valid_loss_change.text('+')}" for s in known]
        sentences.append(f"Against it: {', '.join(parts)}.")
    for summary in summaries:
        if summary.diverged:
            several = f" in {summary.diverged} of {summary.seeds} runs" if summary.seeds > 1 else ""
            sentences.append(f"{summary.recipe} diverged{several}.")
    return " ".join(sentences)


def summarize_recipe(runs: Sequence[Run], baseline: Mapping[int, float | None]) -> Summary:
    """The summary of runs that share a recipe, against the baseline's losses by seed."""

    def values(key: str) -> list[float | None]:
        return [run[key] for run in runs]

    return Summary(
        recipe=runs[0]["recipe"],
        seeds=len(runs),
        diverged=sum(run["diverged"] for run in runs),
        valid_loss=Spread.of(values("valid_loss")),
        valid_loss_change=Spread.of(
            [difference(run["valid_loss"], baseline.get(run["seed"])) for run in runs]
        ),
        final_train_loss=Spread.of(values("final_train_loss")),
        tokens_per_s=Spread.of(values("tokens_per_s")).mean,
        peak_bytes_saved_for_backward=Spread.of(values("peak_bytes_saved_for_backward")).mean,
        share_in_range={
            kind: Spread.of([run["share_in_range"][kind] for run in runs]).mean for kind in KINDS
        },
    )


def difference(value: float | None, other: float | None) -> float | None:
    """`value - other`, or None if either is missing."""
    return None if value is None or other is None else value - other


def percent(share: float | None) -> str:
    """A share as a whole percentage, without its sign."""
    return "–" if share is None else f"{100 * share:.0f}"


def bytes_text(count: float | None) -> str:
    """A number of bytes in the largest binary unit that leaves it above one."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
