"""A model before any number of it is computed, and whether recipes fit it."""

from collections.abc import Sequence

import torch
from torch import nn

from unitscale.models.placed import check_recipe
from unitscale.recipes.within import names_modules
from unitscale.train.config import TrainConfig
from unitscale.train.device import DTYPES, find_device
from unitscale.train.initial import OutputError, build_model
from unitscale.units.placing import check_executor


def on_paper(config: TrainConfig) -> nn.Module:
    """The model of a configuration, built on torch's meta device, at the price of no memory.

    A factory that needs real numbers while it builds is called once more, without that. Torch's
    random state is left as it was.

    Raises:
        ModelError: the factory failed.
    """
    state = torch.random.get_rng_state()
    try:
        with torch.device("meta"):
            return build_model(config)
    except Exception:  # whatever a person's code raises, if it is not the device it comes again
        return build_model(config)
    finally:
        torch.random.set_rng_state(state)


def check_recipes(configs: Sequence[TrainConfig], model: nn.Module | None = None) -> None:
    """Refuse recipes that do not fit the model or the device of their run.

    Args:
        model: that of all configurations; None builds it, if a recipe names modules.
    Raises:
        OutputError: a pattern matches no module, or the device has no such executor.
        ModelError: the factory of the model failed.
    """
    known = {config.recipe: config for config in reversed(configs)}
    for config in reversed(known.values()):
        recipe = config.numerics
        if model is None and names_modules(recipe):
            model = on_paper(config)
        try:
            if model is not None:
                check_recipe(recipe, model)
            probe = nn.Linear(1, 1, device=find_device(config.device), dtype=DTYPES[config.dtype])
            check_executor(probe, recipe, "train")
        except ValueError as error:
            raise OutputError(str(error)) from error
