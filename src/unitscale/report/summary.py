"""Runs to rows: one row per recipe, over its seeds, and the text of every cell.

A run is an entry of `runs` in results.json, with a `seed`. A row's numbers are means over its
seeds, and spreads are sample standard deviations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from unitscale.recipes import RECIPES, parse

Run = Mapping[str, Any]

BASELINE = "fp32"
UNITS_CONTROL = "fp32-units"
"""The parametrization of the unit-scaled recipes without their formats."""

KINDS = ("activations", "gradients", "weights")
TITLES = (
    "recipe",
    "valid\nloss",
    f"vs\n{BASELINE}",
    "of which\nformat",
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

    Of that difference, `format_change` is what the formats make: the difference to `control`, the
    recipe with the same parametrization that rounds nothing. The rest is the parametrization's:
    the control's own difference to the baseline. `control` is None for a recipe that rounds
    nothing, and `format_change` has no mean where the control was not run. `saves_format` is false
    where what is saved is emulated in FP32, so that its bytes are not those of the recipe.
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
    control: str | None = None
    format_change: Spread = Spread(mean=None, std=None)
    saves_format: bool = True

    def cells(self) -> tuple[str, ...]:
        """The texts under `TITLES`."""
        is_baseline = self.recipe == BASELINE
        return (
            self.recipe,
            self.valid_loss.text(),
            "" if is_baseline else self.valid_loss_change.text("+"),
            "" if self.control is None else self.format_change.text("+"),
            self.final_train_loss.text(),
            "–" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f}",
            bytes_text(self.saved_bytes),
            "/".join(percent(self.share_in_range.get(kind)) for kind in KINDS),
            self.note(),
        )

    @property
    def saved_bytes(self) -> float | None:
        """Bytes saved for backward; None where they are those of the emulation."""
        return self.peak_bytes_saved_for_backward if self.saves_format else None

    def note(self) -> str:
        """Whether it diverged, and how often; whether its memory is left out."""
        several = f" ({self.diverged} of {self.seeds})" if self.seeds > 1 else ""
        notes = [f"diverged{several}"] if self.diverged else []
        return ", ".join([*notes, *([] if self.saves_format else ["emulated in FP32"])])


def summarize_results(results: Mapping[str, Any]) -> list[Summary]:
    """The summaries of a results.json."""
    config = results.get("config")
    existing = config.get("existing") if isinstance(config, Mapping) else None
    return summarize(results["runs"], is_existing=existing is not None)


def summarize(runs: Sequence[Run], *, is_existing: bool = False) -> list[Summary]:
    """One summary per recipe, in order of first appearance.

    Args:
        is_existing: the model is an existing one, which units leave as it is to the bit: the
            baseline is the control of every recipe.
    """
    recipes = dict.fromkeys(run["recipe"] for run in runs)
    losses: dict[str, dict[int, float | None]] = {BASELINE: {}, UNITS_CONTROL: {}}
    for run in runs:
        losses.setdefault(run["recipe"], {})[run["seed"]] = run["valid_loss"]
    return [
        summarize_recipe([run for run in runs if run["recipe"] == recipe], losses, is_existing)
        for recipe in recipes
    ]


def control_of(run: Run) -> str | None:
    """The recipe that rounds nothing in the parametrization of a run; None for such a recipe.

    A recipe of another version is taken for one that rounds, in the parametrization of its run.
    """
    recipe = RECIPES.get(run["recipe"])
    if recipe is not None and not recipe.rounds:
        return None
    is_unit = run.get("unit_scaled", False) if recipe is None else recipe.unit_scaled
    return UNITS_CONTROL if is_unit else BASELINE


def is_emulated_throughout(name: str) -> bool:
    """Whether a recipe rounds every tensor of a run, which is then held in FP32 all the same."""
    try:
        return parse(name).throughout is not None
    except ValueError:  # a recipe of one's own, or of another version
        return False


def outcome(summaries: Sequence[Summary]) -> str:
    """How a comparison ended, in words: the baseline's loss, and how far off each recipe is.

    Of a recipe in another parametrization it says how much the format has to do with that.
    """
    by_name = {summary.recipe: summary for summary in summaries}
    baseline = by_name.get(BASELINE)
    sentences = []
    if baseline is not None and baseline.valid_loss.mean is not None:
        sentences.append(f"{BASELINE} ends at a validation loss of {baseline.valid_loss.text()}.")
    known = [s for s in summaries if s.recipe != BASELINE and s.valid_loss_change.mean is not None]
    if known:
        parts = [f"{s.recipe} {s.valid_loss_change.text('+')}" for s in known]
        alone = " (one seed, so that nothing is known of the spread)"
        of = alone if all(s.seeds == 1 for s in known) else ""
        sentences.append(f"Against it{of}: {', '.join(parts)}.")
    unit_scaled = [s for s in summaries if s.control == UNITS_CONTROL]
    split = [s for s in unit_scaled if s.format_change.mean is not None]
    if split:
        parts = [f"{s.recipe} {s.format_change.text('+')}" for s in split]
        sentences.append(f"The format's part, against {UNITS_CONTROL}: {', '.join(parts)}.")
        own = by_name[UNITS_CONTROL].valid_loss_change
        if own.mean is not None:
            sentences.append(f"The parametrization's part: {own.text('+')}.")
    if unit_scaled and UNITS_CONTROL not in by_name:
        names = ", ".join(s.recipe for s in unit_scaled)
        sentences.append(
            f"What the format and what the parametrization of {names} does is not known without a "
            f"run of {UNITS_CONTROL}."
        )
    for summary in summaries:
        if summary.diverged:
            several = f" in {summary.diverged} of {summary.seeds} runs" if summary.seeds > 1 else ""
            sentences.append(f"{summary.recipe} diverged{several}.")
    return " ".join(sentences)


def headline(results: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    seeds = len({run["seed"] for run in results["runs"]})
    text = (
        f"{results['model']} model on {results['data']}: {results['steps']} "
        f"step{'' if results['steps'] == 1 else 's'}, "
        f"{seeds} seed{'' if seeds == 1 else 's'}; losses in nats a byte"
    )
    # A file's name that is not UTF-8 could be written nowhere, neither in a page nor in a picture.
    return text.encode("utf-8", "backslashreplace").decode()


def summarize_recipe(
    runs: Sequence[Run], losses: Mapping[str, Mapping[int, float | None]], is_existing: bool
) -> Summary:
    """The summary of runs that share a recipe.

    Args:
        losses: the validation losses of each recipe by seed, those of the controls among them.
    """

    def values(key: str) -> list[float | None]:
        return [run[key] for run in runs]

    def changes(recipe: str) -> Spread:
        other = losses[recipe]
        return Spread.of([difference(run["valid_loss"], other.get(run["seed"])) for run in runs])

    control = control_of(runs[0])
    if control is not None and is_existing:
        control = BASELINE
    return Summary(
        recipe=runs[0]["recipe"],
        seeds=len(runs),
        diverged=sum(run["diverged"] for run in runs),
        valid_loss=Spread.of(values("valid_loss")),
        valid_loss_change=changes(BASELINE),
        final_train_loss=Spread.of(values("final_train_loss")),
        tokens_per_s=Spread.of(values("tokens_per_s")).mean,
        peak_bytes_saved_for_backward=Spread.of(values("peak_bytes_saved_for_backward")).mean,
        share_in_range={
            kind: Spread.of([run["share_in_range"].get(kind) for run in runs]).mean
            for kind in KINDS
        },
        control=control,
        saves_format=not is_emulated_throughout(runs[0]["recipe"]),
        format_change=Spread(mean=None, std=None) if control is None else changes(control),
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
