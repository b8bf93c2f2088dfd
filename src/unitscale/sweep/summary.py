"""What the runs of a sweep say together: the loss at each learning rate, and the best rate.

A group is all runs that differ in nothing but learning rate and seed. Imports no torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unitscale.sweep.interval import LEVEL, Interval
from unitscale.sweep.row import DIVERGED, FAILED, FINISHED, SIZE

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The runs of a group with one learning rate.

    Args:
        loss: the validation loss over the seeds that finished; None if none did.
        diverged, failed: how many runs ended so.
    """

    lr: float
    loss: Interval | None
    diverged: int
    failed: int

    @property
    def n(self) -> int:
        """How many runs the loss is over."""
        return 0 if self.loss is None else self.loss.n


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one recipe at one size, by learning rate, in rising order.

    Args:
        settings: by name, what tells this group from the others; the recipe and the model always.
        best: the rate with the lowest mean loss, among those that no seed diverged at and that as
            many seeds finished at as at any other; None if there is none.
        is_at_edge: the best is the lowest or the highest rate that was tried, so that a better one
            may lie outside.
    """

    label: str
    settings: Mapping[str, Any]
    rates: tuple[Rate, ...]
    best: Rate | None
    is_at_edge: bool

    def to_json(self) -> dict[str, Any]:
        """As results.json has it."""
        return asdict(self)


def summarize(rows: Iterable[Row]) -> list[Group]:
    """The groups of a sweep, in the order in which they first appear."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(settings_of(row), sort_keys=True), []).append(row)
    settings = [settings_of(found[0]) for found in groups.values()]
    keys = dict.fromkeys(key for own in settings for key in own)
    varied = [key for key in keys if len({json.dumps(own.get(key)) for own in settings}) > 1]
    return [
        group_of(found, own, varied) for found, own in zip(groups.values(), settings, strict=True)
    ]


def settings_of(row: Row) -> dict[str, Any]:
    """All of a row's configuration but the learning rate and the seed, flat."""
    config = {key: value for key, value in row["config"].items() if key not in ("lr", "seed")}
    model = config.pop("model")
    first = {"recipe": config.pop("recipe"), "model": row["model"]}
    size = {name: model[name] for name in SIZE if name in model}
    more = {f"model.{key}": value for key, value in model.items() if key not in (*SIZE, "layer")}
    config.pop("existing")  # the name of the model says it
    return first | size | more | config


def group_of(rows: Sequence[Row], settings: Mapping[str, Any], varied: Sequence[str]) -> Group:
    """The group of rows that share their settings."""
    by_lr: dict[float, list[Row]] = {}
    for row in rows:
        by_lr.setdefault(row["lr"], []).append(row)
    rates = tuple(rate_of(lr, by_lr[lr]) for lr in sorted(by_lr))
    sound = [rate for rate in rates if rate.loss is not None and not rate.diverged]
    most = max((rate.n for rate in sound), default=0)
    whole = [rate for rate in sound if rate.n == most]
    best = min(whole, key=lambda rate: rate.loss.mean if rate.loss else 0.0, default=None)
    shown = {key: settings.get(key) for key in ("recipe", "model", *varied)}
    return Group(
        label=label_of(shown, varied),
        settings=shown,
        rates=rates,
        best=best,
        is_at_edge=best is not None and len(rates) > 1 and best in (rates[0], rates[-1]),
    )


def rate_of(lr: float, rows: Sequence[Row]) -> Rate:
    """The runs of one group at one rate."""
    found = [row["loss"] for row in rows if row["status"] == FINISHED and row["loss"] is not None]
    return Rate(
        lr=lr,
        loss=Interval.of(found) if found else None,
        diverged=sum(row["status"] == DIVERGED for row in rows),
        failed=sum(row["status"] == FAILED for row in rows),
    )


def label_of(settings: Mapping[str, Any], varied: Sequence[str]) -> str:
    """A group in a few words: its recipe, and what else differs between groups."""
    rest = [f"{key.removeprefix('model.')} {settings[key]}" for key in varied if key != "recipe"]
    return ", ".join([str(settings["recipe"]), *rest])


def best_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A line of text for every group: its best learning rate, as tables show it."""
    return [
        {
            "recipe and size": group.label,
            "best lr": "–" if group.best is None else f"{group.best.lr:.4g}",
            f"valid loss, {LEVEL:.0%} interval": str(group.best.loss) if group.best else "–",
            "n": group.best.n if group.best else 0,
            "diverged": sum(rate.diverged for rate in group.rates),
            "failed": sum(rate.failed for rate in group.rates),
            "": "at the edge: try rates beyond" if group.is_at_edge else "",
        }
        for group in groups
    ]


def rate_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A line of text for every learning rate of every group."""
    return [
        {
            "recipe and size": group.label,
            "lr": f"{rate.lr:.4g}",
            f"valid loss, {LEVEL:.0%} interval": "–" if rate.loss is None else str(rate.loss),
            "n": rate.n,
            "diverged": rate.diverged,
            "failed": rate.failed,
        }
        for group in groups
        for rate in group.rates
    ]
