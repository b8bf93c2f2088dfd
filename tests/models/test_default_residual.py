"""The default residual: the plain sum, and what the unit-scaled model has in its place."""

import pytest
import torch

from unitscale.models import CharLM, CharLMConfig
from unitscale.models.charlm import scheme
from unitscale.models.config import CHOICES, DEFAULT_RATIO
from unitscale.models.parts import SumResidual
from unitscale.nn import Ratio, RunningMean


def ratio(branch, skip):
    return (branch.square().mean() / skip.square().mean()).sqrt().item()


@pytest.mark.parametrize("layer", CHOICES["layer"])
def test_plain_sums_start_with_branches_up_to_half_as_large_as_the_skip(layer, monkeypatch):
    found = []

    def add(branch, skip, tau=1.0):
        found.append(ratio(branch, skip))
        return skip + branch

    monkeypatch.setattr(SumResidual, "add", staticmethod(add))
    config = CharLMConfig(layer=layer)
    CharLM(config)(torch.randint(256, (8, config.context)))
    assert len(found) == 2 * config.depth
    assert 0.1 < min(found) < max(found) < DEFAULT_RATIO + 0.05


def test_the_unit_scaled_model_has_that_ratio():
    assert scheme(CharLMConfig(unit_scaled=True)) == Ratio(ratio=DEFAULT_RATIO)
    assert scheme(CharLMConfig(unit_scaled=True, residual="running-mean")) == RunningMean()
