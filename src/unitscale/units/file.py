"""A scaled model's units in a file, to resume with."""

import json
from collections.abc import Set
from pathlib import Path

from torch import nn

from unitscale.units.forward import require_session
from unitscale.units.state import check_state

__all__ = ["load_units", "save_units"]


def save_units(model: nn.Module, path: str | Path) -> None:
    """Write a scaled model's units to a JSON file, to resume with (`load_units`).

    Of several processes each writes what it measured in the last step, which the next one shares:
    write a file in each, or call `share_units` in all and write one.

    Raises:
        ValueError: the model is not scaled, or has no units yet. Of a recipe that has none the
            file says where its schedule stood.
    """
    session = require_session(model, "save_units")
    session.terms.collect()
    store = session.store
    lacks = session.scale and not store.units
    lacks |= store.amaxes.needed and not store.step  # of another recipe's steps there are none
    if lacks:
        raise ValueError(
            f"save_units: this {type(model).__name__} has no units yet; they are set by its first "
            "training step (forward and backward) or evaluation."
        )
    content = {
        "parameters": [name for name, _ in model.named_parameters()],
        **store.state_dict(),
    }
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def load_units(model: nn.Module, path: str | Path) -> None:
    """Read units from a file of `save_units` into a scaled model, and where its schedule stood.

    Raises:
        ValueError: it is no such file, or one of another model: its parameters are others, or its
            tensors are not those of the graphs captured so far, if there are any. Nothing was
            changed.
    """
    session = require_session(model, "load_units")
    try:
        content = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load_units: {path} is no file of save_units: {error}") from None
    try:
        check_state(content)
    except ValueError as error:
        raise ValueError(f"load_units: {path}: {error}") from None
    if not isinstance(content.get("parameters"), list):
        raise ValueError(f"load_units: {path} does not name the parameters of its model")
    names = set(map(str, content["parameters"]))
    check_keys(path, {name for name, _ in model.named_parameters()}, names)
    session.terms.collect()
    if captured := session.store.units.keys():
        check_keys(path, set(captured), content["units"].keys())
    try:
        session.store.load_state_dict(content)
    except ValueError as error:
        raise ValueError(f"load_units: {path}: {error}") from None


def check_keys(path: str | Path, wanted: Set[str], found: Set[str]) -> None:
    """Refuse a file of units whose keys are not those of the model."""
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        raise ValueError(
            f"load_units: {path} is of another model; missing {missing[:5]} ({len(missing)} in "
            f"all), extra {extra[:5]} ({len(extra)} in all)."
        )
