"""Which layers are gathered one at a time."""

from torch import nn

from train.rank_model import Model
from train.tiny import tiny_config
from unitscale.train.initial import build_model
from unitscale.train.replica import layers_of


def test_layers_of_a_stack_are_gathered_one_at_a_time() -> None:
    model = build_model(tiny_config())
    assert layers_of(model) == list(model.trunk)
    own = Model()
    assert layers_of(own) == list(own.blocks)


def test_a_layer_that_shares_a_parameter_stays_with_the_model() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    model.head = nn.Linear(4, 4)
    model.head.weight = model.layers[1].weight
    assert layers_of(model) == [model.layers[0], model.layers[2]]


def test_a_model_without_stacks_is_one_group() -> None:
    assert layers_of(nn.Linear(4, 4)) == []
    assert layers_of(nn.Sequential(nn.Linear(4, 4))) == []
