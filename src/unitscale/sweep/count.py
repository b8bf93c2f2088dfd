"""How many parameters the model of a configuration has, at the price of no memory."""

from torch import nn

from unitscale.sweep.row import Count
from unitscale.train.config import TrainConfig
from unitscale.train.initial import says_kinds
from unitscale.train.paper import check_recipes, on_paper


def count_of(config: TrainConfig) -> Count:
    """The parameters of the model, which is fit for its recipe and its optimizer.

    Raises:
        ModelError: the factory failed. OutputError: as `says_kinds` and `check_recipes`.
    """
    model = on_paper(config)
    check_recipes([config], model)
    says_kinds(config, model)
    tables = {
        id(p): p.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
    }
    return Count(sum(p.numel() for p in model.parameters()), sum(tables.values()))
