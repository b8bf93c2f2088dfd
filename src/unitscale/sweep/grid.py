"""A file of runs: TOML in which a list is swept and anything else is fixed. Imports no torch.

steps = 300                      # for all tables below; a file may also have no table at all
seed = [0, 1, 2]

[[grid]]
recipe = "fp32"
lr = [0.002, 0.004, 0.008]
model.width = [64, 128]

[[grid]]                         # another product of lists; the points of both are trained
recipe = ["fp8", "fp8-e4m3"]
lr = [0.5, 1.0, 2.0]
model = [{width = 64, depth = 2}, {width = 128, depth = 4}]    # swept together
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from unitscale.sweep.point import Point, typed
from unitscale.train.config import TrainConfig

TABLE, DATA = "grid", "data"
FIELDS = tuple(field.name for field in fields(TrainConfig))
KEYS = (DATA, TABLE, *FIELDS)

MOST_POINTS = 10_000
"""Of one sweep. More is a slip of the keyboard: a grid of five lists grows fast."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The points of a sweep, each once, in the order of the file.

    Args:
        data: the text that it names, relative to the file; None if it names none.
        repeated: how many points are in more than one table. They are trained once.
        names_device: whether it says where to train.
    """

    points: tuple[Point, ...]
    data: Path | None
    repeated: int = 0
    names_device: bool = False


def read_grid(path: Path) -> Grid:
    """The grid in a file, every point of it checked.

    The device and the module of a model of one's own are not looked for: that imports torch.

    Raises:
        ValueError, TypeError: no TOML, an unknown key, a value out of range: the message names the
            file, and the value of the first point that cannot be trained.
        OSError: it cannot be read.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); expected a TOML file") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}; docs/sweeps.md shows a grid") from error
    try:
        return grid_of(content, beside=path.parent)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def grid_of(content: Mapping[str, Any], *, beside: Path = Path()) -> Grid:
    """The grid that the content of a file describes.

    Raises:
        ValueError, TypeError: as `read_grid`, without the name of the file.
    """
    content = dict(content)
    check_keys(content, KEYS, "")
    tables = content.pop(TABLE, [{}])
    if isinstance(tables, Mapping):
        tables = [tables]
    if not (isinstance(tables, list) and tables and all(isinstance(t, Mapping) for t in tables)):
        raise ValueError(f"{TABLE} is {tables!r}; expected tables, each under [[{TABLE}]]")
    data = content.pop(DATA, None)
    if not (data is None or (isinstance(data, str) and data)):
        raise ValueError(f"{DATA} is {data!r}; expected the path of a text file")
    axes = []
    for number, table in enumerate(tables, 1):
        where = f"[[{TABLE}]] {number}: " if len(tables) > 1 else ""
        check_keys(table, FIELDS, where)
        axes.append(axes_of(united(content, table, where), where))
    count = sum(prod(len(values) for values in own.values()) for own in axes)
    if count > MOST_POINTS:
        raise ValueError(f"the lists make {count} points; expected at most {MOST_POINTS}")
    found: dict[str, Point] = {}
    for own in axes:
        for point in points_of(own):
            found.setdefault(point.identity, point)
    names = {point.name for point in found.values()}
    if len(names) < len(found):  # one in 2^32 for each pair of points with equal readable parts
        raise ValueError("two points have the same name; change any value of one of them a little")
    return Grid(
        points=tuple(found.values()),
        data=None if data is None else beside / data,
        repeated=count - len(found),
        names_device=any("device" in own for own in axes),
    )


def united(shared: Mapping[str, Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of one table: its own, and those above all tables that it does not have.

    Raises:
        ValueError: `model` is options in one place and a list of tables in the other.
    """
    found = {**shared, **table}
    if "model" in shared and "model" in table:
        both = shared["model"], table["model"]
        if all(isinstance(model, Mapping) for model in both):
            found["model"] = {**both[0], **both[1]}
        elif any(isinstance(model, Mapping) for model in both):
            raise ValueError(
                f"{where}model is a list of tables in one place and options in another; write "
                "both in the same way"
            )
    return found


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise ValueError for a key that nothing would read."""
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            model = "; options of the model are written model.NAME" if not near else ""
            raise ValueError(f"{where}unknown key {key!r}; {hint}{model}")


def axes_of(table: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    """The values of every field, one or several; options of the model as `model.NAME`.

    Raises:
        ValueError: an empty list, a value that is in its list twice, or one that JSON has not.
    """
    axes: dict[str, list[Any]] = {}
    for key, value in table.items():
        if key == "betas":  # one value of it is a list
            is_swept = isinstance(value, list) and any(isinstance(x, list) for x in value)
            axes[key] = value if is_swept else [value]
        elif key == "model" and isinstance(value, Mapping):
            for name, option in value.items():
                axes[f"model.{name}"] = option if isinstance(option, list) else [option]
        elif key == "model" and not is_list_of_tables(value):
            raise ValueError(
                f"{where}model is {value!r}; expected options, as model.width = 64, or a list of "
                "tables of them; the kind is model.layer, and an existing model `existing`"
            )
        else:
            axes[key] = value if isinstance(value, list) else [value]
    for key, values in axes.items():
        if not values:
            raise ValueError(f"{where}{key} is an empty list; expected a value, or several")
        seen: set[str] = set()
        for value in values:
            text = written(value, f"{where}{key}")
            if text in seen:
                raise ValueError(f"{where}{key} has {value!r} twice; a run is made once")
            seen.add(text)
    return axes


def is_list_of_tables(value: Any) -> bool:
    """Whether options of the model are swept together."""
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def written(value: Any, name: str) -> str:
    """A value as text that is equal for equal values: `1` and `1.0` are.

    Raises:
        ValueError: no value that JSON has (a date, infinity), so none that a run's folder keeps.
    """
    whole = isinstance(value, float) and value.is_integer()
    try:
        return json.dumps(int(value) if whole else value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} is {value!r}; expected text, true, false or a finite number"
        ) from None


def points_of(axes: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    """The points of one table: every combination of its values.

    Raises:
        ValueError, TypeError: a combination is no configuration.
    """
    for values in product(*axes.values()):
        flat = dict(zip(axes, values, strict=True))
        model = dict(flat.pop("model", {}))
        for key in [key for key in flat if key.startswith("model.")]:
            model[key.removeprefix("model.")] = flat.pop(key)
        yield Point.of(TrainConfig.from_json(typed({**flat, "model": model})))
