"""Accelerate: `model, optimizer, batches = prepare(accelerator, model, optimizer, batches)`."""

from typing import Any

from torch import nn

from unitscale.integrations.kept import Kept, find, give, keep, share
from unitscale.recipes import Recipe, parse
from unitscale.units import apply_recipe, unit_scale

__all__ = ["Units", "prepare"]

CALLER = "prepare"


class Units:
    """The units of a model, with the two methods that Accelerate asks of what it checkpoints."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> Kept:
        """What `accelerator.save_state` writes."""
        return keep(self.model)

    def load_state_dict(self, state: Kept) -> None:
        """What `accelerator.load_state` reads."""
        give(self.model, state, "load_state")


def prepare(
    accelerator: Any, model: nn.Module, *others: Any, recipe: str | Recipe = "fp8", **options: Any
) -> Any:
    """Scale a model, in place, and let Accelerate prepare it; its units are saved and restored.

    `accelerator.save_state` and `load_state` keep the units with all else, so that a run goes on
    as if never stopped. `us.unit_scale(model)` and `accelerator.prepare` give the same numerics
    and do not keep them.

    Args:
        accelerator: an `accelerate.Accelerator`; `mixed_precision` may be "no" or "bf16".
        model: any module. A recipe without units is applied (`us.apply_recipe`).
        others: optimizers, loaders, schedulers, as for `accelerator.prepare`.
        options: what `us.unit_scale` takes by keyword: `inner`, `remeasure`, `skip`, ...
    Returns:
        What `accelerator.prepare(model, *others)` does.
    Raises:
        ValueError: `mixed_precision` is "fp8" or "fp16"; else as `us.unit_scale`. Nothing was
            changed.
    Source: `register_for_checkpointing` and `register_save_state_pre_hook` of Accelerate 1.15.
    """
    asked = accelerator.mixed_precision
    if asked == "fp8":
        raise ValueError(
            f"{CALLER}: mixed_precision='fp8' is Accelerate's own FP8, which needs another "
            "library, and would round once more; leave it out, the recipe says what is rounded."
        )
    if asked == "fp16":
        raise ValueError(
            f"{CALLER}: mixed_precision='fp16' scales the loss, which units make needless, and the "
            "scale would change under them; use recipe='fp16', or mixed_precision='bf16'."
        )
    recipe = parse(recipe)
    scale = unit_scale if recipe.unit_scaled else apply_recipe
    scale(model, recipe, **options)
    find(model, CALLER)
    accelerator.register_for_checkpointing(Units(model))
    # Each process has measured its own share by then, and one of them writes for all.
    accelerator.register_save_state_pre_hook(lambda *_: share(model))
    return accelerator.prepare(model, *others)
