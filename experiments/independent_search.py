"""Read a sweep over u-muP's multipliers: did the best learning rate move with any of them?

    unitscale sweep experiments/independent_search.toml --out runs/independent
    python experiments/independent_search.py runs/independent

u-muP promises that hyperparameters can be searched one after the other: the learning rate first,
then each multiplier alone, then the best of all together. That needs the best rate to stay where it
is while a multiplier changes. The table says whether it did, on the rates of the sweep; a gain
that is smaller than what seeds differ by says nothing. After the table comes the `[[grid]]` of the
multipliers that were best, to append to the sweep's file: step three of the search.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from unitscale.models.config import MULTIPLIERS

Losses = dict[float, dict[int, float]]  # by learning rate and seed


@dataclass(frozen=True)
class Arm:
    """The runs of one choice of multipliers; `changed` has those that are not 1."""

    changed: tuple[tuple[str, float], ...]
    losses: Losses

    @property
    def best(self) -> tuple[float, float]:
        """The rate with the lowest mean loss, and that loss."""
        means = ((rate, mean(found.values())) for rate, found in self.losses.items())
        return min(means, key=lambda pair: pair[1])

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.changed) or "all 1"


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a sweep."""
    path = folder / "runs.jsonl"
    if not path.exists():
        sys.exit(f"{path} does not exist; expected the folder that `unitscale sweep --out` wrote")
    return [json.loads(line) for line in path.read_text().splitlines()]


def arms(rows: Iterable[dict[str, Any]]) -> list[Arm]:
    """The runs by their multipliers; one that diverged or failed has no loss and is left out."""
    found: dict[tuple[tuple[str, float], ...], Losses] = {}
    for row in rows:
        options = row["config"]["model"]
        values = ((name, float(options.get(name, 1.0))) for name in MULTIPLIERS)
        losses = found.setdefault(tuple((n, v) for n, v in values if v != 1), {})
        if row["loss"] is not None:
            losses.setdefault(row["lr"], {})[row["seed"]] = row["loss"]
    return [Arm(changed, losses) for changed, losses in sorted(found.items()) if losses]


def noise(base: Arm) -> float | None:
    """The largest difference between two seeds at one rate; None if there is one seed."""
    spreads = [
        max(found.values()) - min(found.values())
        for found in base.losses.values()
        if len(found) > 1
    ]
    return max(spreads) if spreads else None


def gap(base: Arm, arm: Arm) -> float:
    """The arm's best loss against the base's best, on the seeds that both have."""
    rate, _ = arm.best
    theirs, own = base.losses[base.best[0]], arm.losses[rate]
    seeds = theirs.keys() & own.keys()
    if not seeds:
        return arm.best[1] - base.best[1]
    return mean(own[seed] - theirs[seed] for seed in seeds)


def moved(base: Arm, arm: Arm) -> str:
    """Whether the best rate moved, and what staying at the base's best rate costs."""
    rate, loss = arm.best
    stay = base.best[0]
    if stay not in arm.losses:
        return f"not known: no run at {stay:g}"
    at_edge = rate in (min(arm.losses), max(arm.losses))
    if rate == stay:
        return "no"
    cost = mean(arm.losses[stay].values()) - loss
    return f"{stay:g} to {rate:g}{' (edge)' if at_edge else ''}; staying costs {cost:.4f}"


def best_values(base: Arm, others: Sequence[Arm]) -> dict[str, float]:
    """Each multiplier's best value at the base's best rate, where that is better than 1."""
    rate, _ = base.best
    best: dict[str, tuple[float, float]] = {}
    for arm in others:
        if len(arm.changed) == 1 and rate in arm.losses:
            ((name, value),) = arm.changed
            difference = gap(base, Arm(arm.changed, {rate: arm.losses[rate]}))
            if difference < best.get(name, (0.0, 1.0))[0]:
                best[name] = (difference, value)
    return {name: value for name, (_, value) in best.items()}


def report(rows: Iterable[dict[str, Any]]) -> str:
    """The table, and the grid of step three."""
    found = arms(rows)
    base = next((arm for arm in found if not arm.changed), None)
    if base is None:
        sys.exit("no run has all multipliers at 1; the search starts there")
    others = [arm for arm in found if arm.changed]
    spread = noise(base)
    lines = [
        "| multipliers | best rate | loss there | against all 1 | did the best rate move? |",
        "|---|---|---|---|---|",
    ]
    for arm in (base, *others):
        rate, loss = arm.best
        against = f"{gap(base, arm):+.4f}" if arm.changed else ""
        lines.append(
            f"| {arm.label} | {rate:g} | {loss:.4f} | {against} | "
            f"{moved(base, arm) if arm.changed else ''} |"
        )
    known = "one seed" if spread is None else f"seeds differ by up to {spread:.4f}"
    alone = [arm for arm in others if len(arm.changed) == 1]
    stayed = sum(moved(base, arm) == "no" for arm in alone)
    lines += ["", f"The best rate stayed for {stayed} of {len(alone)} choices; {known}.", ""]
    best = best_values(base, others)
    if best:
        lines += ["[[grid]]                       # 3. what was best, together"]
        lines += [f"lr = {base.best[0]:g}"]
        lines += [f"model.{name} = {value:g}" for name, value in best.items()]
    else:
        lines += ["No multiplier was better than 1 at that rate: nothing to put together."]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `unitscale sweep --out` wrote")
    print(report(read(parser.parse_args().folder)))
