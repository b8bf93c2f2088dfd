"""What a saved state of a scaled model's units may hold: checked whole before anything is taken."""

from collections.abc import Collection, Mapping
from typing import Any

from unitscale.units.assign import MAX_EXPONENT

__all__ = ["STATE_VERSION", "check_state"]

STATE_VERSION = 4
"""Of `UnitStore.state_dict`. Version 1 counted steps per graph and had no version number. Those
after it are read still: version 2 knew no amaxes, version 3 not what was still to be shared."""


def check_state(state: Any) -> None:
    """Refuse what is no state of a `UnitStore`.

    Raises:
        ValueError: another version, a missing key, another type, a unit out of range.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"units are a {type(state).__name__}; expected an object with their state")
    if state.get("version") not in (2, 3, STATE_VERSION):
        raise ValueError(
            f"units of version {state.get('version', 1)!r}; expected {STATE_VERSION}. Measure them "
            "again (leave the file out, and the first step does), or upgrade unitscale, if a newer "
            "one wrote them."
        )
    kinds = {
        "step": int,
        "requested": bool,
        "graphs": list,
        "units": dict,
        "without_phi": list,
        "evaluated": list,
    }
    if state["version"] >= 3:
        kinds["amaxes"] = dict
    if state["version"] >= 4:
        kinds |= {"unshared": dict, "delayed": bool, "pending_amaxes": list}
    for key, kind in kinds.items():
        value = state.get(key)
        if not isinstance(value, kind) or (kind is int and not is_count(value)):
            raise ValueError(f"units: {key!r} is {shortened(value)}; expected a {kind.__name__}")
    if not is_count(began := state.get("began", 0)) or began > state["step"]:
        raise ValueError(
            f"units: 'began' is {shortened(began)}; expected a whole number up to the step, "
            f"{state['step']}"
        )
    for name, unit in state["units"].items():
        check_unit(name, unit)
    for key in ("without_phi", "evaluated"):
        check_names(key, state[key], state["units"])
    halves = state.get("zero", [])
    if not isinstance(halves, list | tuple) or not all(map(is_half, halves)):
        raise ValueError(
            f"units: 'zero' is {shortened(halves)}; expected pairs of 's' or 'phi' and a name"
        )
    if not is_names(asleep := state.get("asleep", [])):
        raise ValueError(f"units: 'asleep' is {shortened(asleep)}; expected a list of names")
    for entry in state["graphs"]:
        fits = isinstance(entry, list | tuple) and len(entry) == 4 and isinstance(entry[1], bool)
        if not fits or not is_count(entry[0]) or not all(map(is_names, entry[2:])):
            raise ValueError(
                f"units: a graph is {shortened(entry)}; expected a number, true or false, and two "
                "lists of names"
            )


def check_unit(name: Any, unit: Any) -> None:
    """Refuse what is no unit: two exponents in range."""
    if not isinstance(unit, Mapping) or unit.keys() != {"s", "phi"}:
        raise ValueError(
            f"units: the unit of {name!r} is {shortened(unit)}; expected {{'s': ..., 'phi': ...}}"
        )
    for half, exponent in unit.items():
        is_whole = isinstance(exponent, int) and not isinstance(exponent, bool)
        if not is_whole or abs(exponent) > MAX_EXPONENT:
            raise ValueError(
                f"units: {half} of {name!r} is 2 to the power of {shortened(exponent)}; expected a "
                f"whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}"
            )


def check_names(key: str, names: Any, units: Collection[str]) -> None:
    """Refuse a list that names something else than tensors with a unit."""
    if not is_names(names):
        raise ValueError(f"units: {key!r} is {shortened(names)}; expected a list of names")
    if unknown := sorted(set(names) - set(units)):
        raise ValueError(f"units: {key!r} names {unknown[:3]}, which have no unit in the file")


def is_count(value: Any) -> bool:
    """Whether a value is 0, 1, 2, ..."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_names(value: Any) -> bool:
    """Whether a value is a list of strings."""
    return isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)


def is_half(value: Any) -> bool:
    """Whether a value is a half of a unit: "s" or "phi", and a name."""
    return is_names(value) and len(value) == 2 and value[0] in ("s", "phi")


def shortened(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
