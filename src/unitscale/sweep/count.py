"""How many parameters the model of a configuration has, at the price of no memory."""

import torch
from torch import nn

from unitscale.sweep.row import Count
from unitscale.train.config import TrainConfig
from unitscale.train.initial import build_model, says_kinds


def count_of(config: TrainConfig) -> Count:
    """The parameters of the model, built on torch's meta device.

    A factory that needs real numbers while it builds is called once more, without that.

    Raises:
        ModelError: the factory failed. OutputError: as `says_kinds`.
    """
    state = torch.random.get_rng_state()
    try:
        with torch.device("meta"):
            model = build_model(config)
    except Exception:  # whatever a person's code raises, if it is not the device it comes again
        model = build_model(config)
    finally:
        torch.random.set_rng_state(state)
    says_kinds(config, model)
    tables = {
        id(p): p.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
    }
    return Count(sum(p.numel() for p in model.parameters()), sum(tables.values()))
