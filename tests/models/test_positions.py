"""How many tokens a model says that it takes at once."""

from types import SimpleNamespace

import pytest
from torch import nn

from unitscale.models.positions import positions_of


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 16}, 16),
        ({"n_positions": 8}, 8),
        ({"context": 4}, 4),
        ({"context": "long"}, None),
        ({"context": 0}, None),
        ({}, None),
    ],
)
def test_positions_are_those_of_the_configuration(config: dict, expected: int | None) -> None:
    alone = SimpleNamespace(config=SimpleNamespace(**config))
    assert positions_of(alone) == expected
    assert positions_of(SimpleNamespace(model=alone)) == expected


def test_a_model_without_a_configuration_says_nothing() -> None:
    assert positions_of(nn.Linear(2, 2)) is None
