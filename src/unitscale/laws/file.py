"""law.json: a law as a file, checked when it is read."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unitscale.laws.damage import Damage
from unitscale.laws.form import Form
from unitscale.laws.law import Law
from unitscale.laws.row import TENSORS, TOGETHER
from unitscale.laws.scope import HeldOut, Scope
from unitscale.report.atomic import write_text

KIND = "unitscale law of precision"
VERSION = 1


def save_law(law: Law, path: Path) -> None:
    """Write law.json, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, json.dumps(to_json(law), indent=1, allow_nan=False) + "\n")


def to_json(law: Law) -> dict[str, Any]:
    """What the file holds."""
    found = asdict(law)
    found["widths"] = {name: width for name, width in law.widths.items() if math.isfinite(width)}
    return {"kind": KIND, "version": VERSION} | found


def load_law(path: "Path | str") -> Law:
    """The law in a file.

    Raises:
        ValueError: it is none, or damaged; says what is wrong.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); expected a file of `laws fit`") from error
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise ValueError(f"{path} is no law; expected a file that `laws fit` wrote")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {content.get('version')!r}; expected {VERSION}: fit it again"
        )
    try:
        return from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged ({reason}); fit the law again") from error


def from_json(content: Mapping[str, Any]) -> Law:
    """The inverse of `to_json`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a part is missing, or of another type.
    """
    form = Form(**{name: tuple_of(value) for name, value in content["form"].items()})
    members = {member for name in form.tensors for member in name.split(TOGETHER)}
    if not (set(form.offsets) <= set(form.tensors) and members <= set(TENSORS)):
        raise ValueError(f"tensors are {form.tensors!r}, offsets {form.offsets!r}")
    values = {name: finite(content["values"][name], name) for name in form.names}
    for name, value in values.items():
        if form.is_logarithm(name) and value <= 0:
            raise ValueError(f"{name} is {value!r}; expected a number above 0")
    draws = tuple(tuple(finite(x, "a draw") for x in draw) for draw in content["draws"])
    if any(len(draw) != len(form.names) for draw in draws):
        raise ValueError(f"a draw has not the {len(form.names)} numbers of its parameters")
    damage_draws = tuple(damage_in(one) for one in content["damage_draws"])
    if damage_draws and len(damage_draws) != len(draws):
        raise ValueError(f"{len(damage_draws)} draws of the damage for {len(draws)} of the rest")
    scope = dict(content["scope"])
    scope["bits"] = {name: pair(value) for name, value in scope["bits"].items()}
    for name in ("sizes", "tokens"):
        scope[name] = pair(scope[name])
    if scope["post_bits"] is not None:
        scope["post_bits"] = pair(scope["post_bits"])
    if set(scope["bits"]) != set(form.tensors):
        raise ValueError("its scope has not the bits of its tensors")
    held = content["held_out"]
    demo, notes = content["demo"], tuple(content["notes"])
    if not (demo is None or isinstance(demo, str)) or not all(isinstance(n, str) for n in notes):
        raise ValueError("demo or notes are no text")
    return Law(
        form=form,
        values=values,
        scope=Scope(**scope),
        draws=draws,
        damage=None if content["damage"] is None else damage_in(content["damage"]),
        damage_draws=damage_draws,
        residuals=tuple(finite(x, "a residual") for x in content["residuals"]),
        widths={str(k): finite(v, "a width") for k, v in content["widths"].items()},
        held_out=None if held is None else HeldOut(**held),
        demo=demo,
        notes=notes,
    )


def tuple_of(value: Any) -> Any:
    """A list of names as the form has it; anything else as it is."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r} is no list of names")
    return tuple(value)


def finite(value: Any, what: str) -> float:
    """A number of the file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{what} is {value!r}; expected a finite number")
    return float(value)


def pair(value: Any) -> tuple[float, float]:
    """Two numbers, the least first."""
    low, high = (finite(x, "the end of a range") for x in value)
    if low > high:
        raise ValueError(f"a range is {value!r}")
    return low, high


def damage_in(value: Mapping[str, Any]) -> Damage:
    """The constants of a damage."""
    found = Damage(
        **{name: finite(value[name], name) for name in ("c", "by_tokens", "by_size", "by_bits")},
        robust={str(k): finite(v, "a constant") for k, v in value["robust"].items()},
    )
    if found.c <= 0 or found.by_bits <= 0:
        raise ValueError(f"a damage has c {found.c!r} and by_bits {found.by_bits!r}")
    return found
