"""law.json: a law as a file, checked when it is read."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unitscale.laws.damage import LIMITS, Damage
from unitscale.laws.form import Form
from unitscale.laws.law import Law
from unitscale.laws.row import MOST_BITS, TENSORS, TOGETHER
from unitscale.laws.scope import HeldOut, Scope
from unitscale.report.atomic import write_text
from unitscale.report.version import upgrade

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
            f"{upgrade(content.get('version'), VERSION)}"
        )
    try:
        return from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged ({reason}); fit the law again") from error


def from_json(content: Mapping[str, Any]) -> Law:
    """The inverse of `to_json`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a part is missing, is of another type, or
            is beyond what a fit looks at.
    """
    form = form_in(content["form"])
    values = {name: finite(content["values"][name], name) for name in form.names}
    for name, value in values.items():
        if form.is_logarithm(name) and value <= 0:
            raise ValueError(f"{name} is {value!r}; expected a number above 0")
    check_within(form, form.vector(values).tolist())
    draws = tuple(tuple(finite(x, "a draw") for x in draw) for draw in content["draws"])
    if any(len(draw) != len(form.names) for draw in draws):
        raise ValueError(f"a draw has not the {len(form.names)} numbers of its parameters")
    for draw in draws:
        check_within(form, draw, "of a draw ")
    damage = None if content["damage"] is None else damage_in(content["damage"])
    damage_draws = tuple(damage_in(one) for one in content["damage_draws"])
    if damage_draws and len(damage_draws) != len(draws):
        raise ValueError(f"{len(damage_draws)} draws of the damage for {len(draws)} of the rest")
    scope = scope_in(content["scope"], form)
    residuals = tuple(finite(x, "a residual") for x in content["residuals"])
    if len(residuals) != scope.rows and (draws or residuals):
        raise ValueError(f"{len(residuals)} residuals of {scope.rows} rows; expected one of each")
    if wrong := [x for x in residuals if abs(x) > LARGEST_RESIDUAL]:
        raise ValueError(f"a residual is {wrong[0]!r}; expected at most {LARGEST_RESIDUAL:g}")
    widths = {str(k): finite(v, "a width") for k, v in content["widths"].items()}
    if low := [name for name, width in widths.items() if not 1 <= width <= MOST_BITS]:
        raise ValueError(f"the width of {low[0]!r} is {widths[low[0]]!r}; expected bits")
    held = content["held_out"]
    demo, notes = content["demo"], content["notes"]
    if not (demo is None or isinstance(demo, str)) or not is_texts(notes):
        raise ValueError("demo or notes are no text")
    return Law(
        form=form,
        values=values,
        scope=scope,
        draws=draws,
        damage=damage,
        damage_draws=damage_draws,
        residuals=residuals,
        widths=widths,
        held_out=None if held is None else held_out_in(held),
        demo=demo,
        notes=tuple(notes),
    )


LARGEST_RESIDUAL = 60.0
"""Of a logarithm of losses; its exponential is a number with room to spare."""

SLACK = 1e-6
"""A fit ends on its limits, but for rounding."""


def form_in(value: Mapping[str, Any]) -> Form:
    """The form of a file."""
    form = Form(**{name: tuple_of(one) for name, one in value.items()})
    for name in ("tensors", "offsets", "recipes"):
        listed = getattr(form, name)
        if not isinstance(listed, tuple) or len(set(listed)) != len(listed):
            raise ValueError(f"{name} are {listed!r}; expected a list of different names")
    if not isinstance(form.tied, bool) or not isinstance(form.reference, str | None):
        raise ValueError(f"tied is {form.tied!r} and reference {form.reference!r}")
    members = [member for name in form.tensors for member in name.split(TOGETHER)]
    if not set(form.offsets) <= set(form.tensors) or sorted(members) != sorted(
        set(members) & set(TENSORS)
    ):
        raise ValueError(f"tensors are {form.tensors!r}, offsets {form.offsets!r}")
    if form.recipes and (form.reference is None or form.reference in form.recipes):
        raise ValueError(f"reference is {form.reference!r}, recipes are {form.recipes!r}")
    return form


def check_within(form: Form, vector: Sequence[float], whose: str = "") -> None:
    """Refuse parameters that no fit can end at: with them answers overflow, or mean nothing.

    Args:
        vector: as the form has it.
    Raises:
        ValueError: names the first.
    """
    for name, value, least, most in zip(form.names, vector, *form.limits, strict=True):
        if not least - SLACK <= value <= most + SLACK:
            what = f"ln {name}" if form.is_logarithm(name) else name
            raise ValueError(f"{whose}{what} is {value:.4g}; expected {least:.4g} to {most:.4g}")


def scope_in(value: Mapping[str, Any], form: Form) -> Scope:
    """The scope of a file."""
    scope = dict(value)
    for name in ("rows", "n_sizes", "n_tokens"):
        scope[name] = count(scope[name], name)
    for name in ("sizes", "tokens"):
        scope[name] = pair(scope[name], least=1.0)
    scope["bits"] = {name: pair(one, most=MOST_BITS) for name, one in scope["bits"].items()}
    if scope["post_bits"] is not None:
        scope["post_bits"] = pair(scope["post_bits"], most=MOST_BITS)
    scope["recipes"] = {name: count(n, "a number of rows") for name, n in scope["recipes"].items()}
    if set(scope["bits"]) != set(form.tensors):
        raise ValueError("its scope has not the bits of its tensors")
    return Scope(**scope)


def held_out_in(value: Mapping[str, Any]) -> HeldOut:
    """The errors of sizes left out, in a file."""
    return HeldOut(
        mean=finite(value["mean"], "mean"),
        worst=finite(value["worst"], "worst"),
        sizes=count(value["sizes"], "sizes"),
    )


def tuple_of(value: Any) -> Any:
    """A list of names as the form has it; anything else as it is."""
    if not isinstance(value, list):
        return value
    if not is_texts(value):
        raise ValueError(f"{value!r} is no list of names")
    return tuple(value)


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def finite(value: Any, what: str) -> float:
    """A number of the file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{what} is {value!r}; expected a finite number")
    return float(value)


LARGEST = 1e300
"""Of any number of a file. What is not a number is not below it, nor is an int beyond floats."""


def count(value: Any, what: str) -> int:
    """A number of things."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} is {value!r}; expected a whole number")
    return value


def pair(value: Any, *, least: float = 0.0, most: float = LARGEST) -> tuple[float, float]:
    """Two numbers, the least first."""
    low, high = (finite(x, "the end of a range") for x in value)
    if not least <= low <= high <= most:
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
    for name, constant, is_log in (
        ("C_T", found.c, True),
        ("gamma_D", found.by_tokens, False),
        ("gamma_N", found.by_size, False),
        ("gamma_post", found.by_bits, True),
        *(("C", constant, True) for constant in found.robust.values()),
    ):
        least, most = LIMITS[name]
        if is_log and constant <= 0:
            raise ValueError(f"{name} of the damage is {constant!r}; expected a number above 0")
        if not least - SLACK <= (math.log(constant) if is_log else constant) <= most + SLACK:
            raise ValueError(f"{name} of the damage is {constant!r}, beyond what a fit looks at")
    if not found.robust.keys() <= set(TENSORS):
        raise ValueError(f"the damage has constants of {sorted(found.robust)}")
    return found
