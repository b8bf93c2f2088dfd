"""The units of a model whose masks become zeros: those of the masked weights go to the weights.

Under a recipe a mask is a product of `weight_orig` and `weight_mask`, called `a.mul` in module `a`;
without it the weight itself is what is rounded, `a.weight`. No value changes, so no unit does.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from unitscale.units.forward import attach
from unitscale.units.session import Session

__all__ = ["go_on"]


def go_on(model: nn.Module, session: Session, masked: Collection[str]) -> None:
    """Let a model without masks run under the recipe and the units that it had with them.

    Args:
        model: plain by now.
        session: of the model while it had masks, its last step collected.
        masked: the paths of the modules that had them.
    """
    found = Session(
        session.recipe,
        scale=session.scale,
        remeasure=session.store.remeasure,
        inner=session.inner,
        model=model,
        beside=session.beside,
    )
    found.store.given = session.store.given
    found.store.amaxes.lengths = dict(session.store.amaxes.lengths)
    found.store.load_state_dict(without_masks(session.store.state_dict(), masked))
    found.store.join(session.store.fused)
    attach(model, found)


def without_masks(state: Mapping[str, Any], masked: Collection[str]) -> dict[str, Any]:
    """What a store of units holds, by the names that tensors have without masks.

    A further `mul` in such a module has another number then, so it gets its unit anew.
    """
    start = [f"{path}." if path else "" for path in masked]
    weights = {f"{own}mul": f"{own}weight" for own in start}
    parameters = {f"{own}weight_orig": f"{own}weight" for own in start}
    gone = (*parameters, *(f"{own}weight_mask" for own in start))
    numbered = tuple(f"{own}mul#" for own in start)

    def renamed(names: Iterable[str]) -> dict[str, str]:
        """New names, by the old ones."""
        return {
            name: weights.get(name, name)
            for name in names
            if name not in gone and not name.startswith(numbered)
        }

    def renamed_keys(found: Mapping[str, Any]) -> dict[str, Any]:
        return {new: found[name] for name, new in renamed(found).items()}

    def renamed_pairs(found: Iterable[Any]) -> list[Any]:
        return [[half, new] for half, name in found for new in renamed([name]).values()]

    zero = {"zero": renamed_pairs(state["zero"])} if "zero" in state else {}
    return {
        **state,
        **zero,
        "graphs": [
            [
                index,
                is_whole,
                [parameters.get(name, name) for name in own],
                [name for name in names if name not in ("mul", *gone) or "" not in masked],
            ]
            for index, is_whole, own, names in state["graphs"]
        ],
        "units": renamed_keys(state["units"]),
        "without_phi": sorted(renamed(state["without_phi"]).values()),
        "evaluated": sorted(renamed(state["evaluated"]).values()),
        "unshared": renamed_keys(state["unshared"]),
    }
