"""What calibration must have seen of a layer, and what its batches may hold."""

import pytest
import torch
from torch import nn

import unitscale as us
from deploy.small import inputs
from unitscale.deploy.quantized import quantized_layers

X = inputs()


class Routed(nn.Module):
    """A layer for all rows, and an expert for those that a mask picks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.expert = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        picked = x[:, 0] > 10
        y = self.shared(x).clone()
        y[picked] = self.expert(x[picked])
        return y


class ZeroBranch(nn.Module):
    """A branch that starts as zero, and a layer behind it that so gets zeros."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(16, 4, bias=False), nn.Linear(4, 16)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return x + self.up(self.down(x))


class Masked(nn.Module):
    """Attention under a float mask, as an argument of the model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x, mask=None):
        y = self.layer(x)
        return y if mask is None else torch.softmax(y @ y.T + mask, -1) @ y


@pytest.mark.parametrize("recipe", ["fp8", "nvfp4"])
@pytest.mark.parametrize(
    ("kind", "message", "skip"),
    [
        (Routed, "'expert' and 0 other layers never ran on the .*skip=.'expert'", "expert"),
        (ZeroBranch, "'up' and 0 other layers got zeros alone on the .*skip=.'up'", "up"),
    ],
)
def test_a_layer_that_saw_nothing_is_refused_by_name(kind, message, skip, recipe):
    model = kind()
    with pytest.raises(ValueError, match=message):
        us.deploy.quantize(model, recipe, [X, X])
    assert not quantized_layers(model)
    us.deploy.quantize(model, recipe, [X, X], skip=[skip])
    assert len(quantized_layers(model)) == 1


def test_one_batch_that_reaches_a_layer_is_enough():
    reaching = X.clone()
    reaching[0, 0] = 11
    model = us.deploy.quantize(Routed(), "fp8", [X, reaching, X])
    assert model.expert.input_scale == torch.tensor([11 / 448])


def test_a_mask_may_hold_minus_infinity():
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    model = us.deploy.quantize(Masked(), "fp8", [{"x": X, "mask": mask}])
    assert model.layer.input_scale == X.abs().max() / 448


@pytest.mark.parametrize("recipe", ["fp8", "fp8-dynamic"])
def test_infinity_that_comes_into_a_layer_is_refused(recipe):
    broken = X.clone()
    broken[1, 2] = -torch.inf
    with pytest.raises(ValueError, match="'layer' gets NaN or infinity on calibration batch 1"):
        us.deploy.quantize(Masked(), recipe, [X, broken])
