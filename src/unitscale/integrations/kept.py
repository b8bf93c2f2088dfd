"""Scaled modules inside of what a framework made of a model, and their units for a checkpoint."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from unitscale.units.forward import session_of
from unitscale.units.replicas import agree, groups_of
from unitscale.units.session import Session
from unitscale.units.state import check_state

__all__ = ["Kept", "find", "give", "keep", "share"]

Kept = dict[str, Any]
"""Units and the place in the measuring schedule by the path of the scaled module, as JSON."""


def scaled_in(model: nn.Module) -> Iterator[tuple[str, nn.Module, Session]]:
    """Each scaled module of a model with its path and session.

    A framework may put a function of its own around the module's `forward` (Accelerate does, for
    autocast); the module keeps its session all the same.
    """
    for path, module in model.named_modules():
        session = session_of(module)
        if session is not None:
            yield path, module, session


def find(model: nn.Module, caller: str) -> list[tuple[str, nn.Module, Session]]:
    """The scaled modules of a model, at least one.

    Raises:
        ValueError: there is none.
    """
    found = list(scaled_in(model))
    if not found:
        raise ValueError(
            f"{caller}: no module of this {type(model).__name__} is scaled; call "
            "us.unit_scale(model) before you hand it over."
        )
    return found


def share(model: nn.Module) -> None:
    """Give all processes of a run the units of the last step now; each has to call it."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for _, module, session in scaled_in(model):
        session.terms.collect()
        agree(session.store, groups_of(module) or [dist.group.WORLD])


def keep(model: nn.Module) -> Kept:
    """What a checkpoint needs of the units of a model; call `share` in all processes first."""
    kept = {}
    for path, module, session in scaled_in(model):
        session.terms.collect()
        names = [name for name, _ in module.named_parameters()]
        kept[path] = {"parameters": names, "state": session.store.state_dict()}
    return kept


def give(model: nn.Module, kept: Any, caller: str) -> None:
    """Take over what `keep` gave; everything is checked before anything is changed.

    A path may differ where a wrapper is gone or new, as long as one module is scaled.

    Raises:
        ValueError: it is of another model, or is not what `keep` gives.
    """
    found = find(model, caller)
    entries = kept if isinstance(kept, Mapping) else {}
    if len(found) == len(entries) == 1:
        entries = {found[0][0]: next(iter(entries.values()))}
    paths = [path for path, _, _ in found]
    if entries.keys() != set(paths):
        raise ValueError(
            f"{caller}: the checkpoint holds units of {sorted(map(str, entries))}, and the "
            f"scaled modules of this {type(model).__name__} are {paths}; resume with the "
            "model that was saved."
        )
    for path, module, _ in found:
        check(entries[path], module, caller)
    earlier = [(session, session.store.state_dict()) for _, _, session in found]
    try:
        for path, _, session in found:
            session.terms.collect()
            session.store.load_state_dict(entries[path]["state"])
    except ValueError as error:
        for session, state in earlier:
            session.store.load_state_dict(state)
        raise ValueError(f"{caller}: {error}") from None


def check(entry: Any, module: nn.Module, caller: str) -> None:
    """Refuse what are no units, and those of a module with other parameters."""
    fits = isinstance(entry, Mapping) and entry.keys() == {"parameters", "state"}
    if not fits or not isinstance(entry["parameters"], list):
        raise ValueError(
            f"{caller}: the checkpoint's units are {str(entry)[:60]!r}; expected a list of "
            "'parameters' and a 'state'."
        )
    try:
        check_state(entry["state"])
    except ValueError as error:
        raise ValueError(f"{caller}: {error}") from None
    wanted, got = (
        {name for name, _ in module.named_parameters()},
        set(map(str, entry["parameters"])),
    )
    if wanted != got:
        raise ValueError(
            f"{caller}: the checkpoint's units are of another {type(module).__name__}: missing "
            f"{sorted(wanted - got)[:3]}, extra {sorted(got - wanted)[:3]}."
        )
