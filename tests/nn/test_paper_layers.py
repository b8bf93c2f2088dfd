"""The layers of the paper's character models: recurrent highway, causal convolution, shift."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale.functional as U
from unitscale import nn as unn
from validity import assert_valid_gradients


def rms(x: Tensor) -> float:
    return x.detach().square().mean().sqrt().item()


def measured(module: nn.Module, x: Tensor) -> tuple[float, float, dict[str, float]]:
    """RMS of output, of the input's gradient and of every parameter's."""
    x = x.requires_grad_()
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(torch.randn_like(y))
    return rms(y), rms(x.grad), {name: rms(p.grad) for name, p in module.named_parameters()}


@pytest.mark.parametrize("rebias", [0.0, 1.0, 2.0])
def test_highway_has_unit_scale_at_any_rebias(rebias: float) -> None:
    layer = unn.RecurrentHighway(128, 128, batch_first=True, rebias=rebias, bias=False)
    output, grad, weights = measured(layer, torch.randn(16, 96, 128))
    # From a state of 0 the first 1 / sigmoid(-rebias) steps, up to 8 of 96, are below 1.
    assert 0.85 < output < 1.1
    assert 0.9 < grad < 1.3
    # Weights see correlated gradients of neighbouring steps: the more, the slower the state.
    assert all(0.7 < value < 3 for value in weights.values()), weights


def test_highway_is_the_cell_of_the_demo() -> None:
    layer = unn.RecurrentHighway(5, 3, batch_first=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, h = torch.randn(2, 4, 5), torch.zeros(2, 3)
    w_ih, w_hh, b_ih, b_hh = layer.parameters()
    for step in x.unbind(1):
        gates = F.linear(step, w_ih / 8**0.5, b_ih) + F.linear(h, w_hh / 8**0.5, b_hh)
        u, c = gates[:, :3].sub(1).sigmoid(), gates[:, 3:].tanh()
        h = (1 - u) * h + u * c
    output, state = layer(x)
    torch.testing.assert_close(state[0], h)
    ratio = output[:, -1] / h
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))


def test_highway_carries_its_state_and_takes_layers_and_directions() -> None:
    layer = unn.RecurrentHighway(5, 6, num_layers=2, bidirectional=True)
    y, state = layer(torch.randn(7, 2, 5))
    assert (y.shape, state.shape) == ((7, 2, 12), (4, 2, 6))
    one = unn.RecurrentHighway(5, 6, batch_first=True, rebias=0.5)
    x = torch.randn(2, 8, 5)
    first, state = one(x[:, :3])
    torch.testing.assert_close(torch.cat((first, one(x[:, 3:], state)[0]), 1), one(x)[0])


def test_highway_may_learn_its_first_state() -> None:
    layer = unn.RecurrentHighway(32, 128, trainable_state=True)
    assert layer.parameter_kinds["state"] == "bias"
    assert (layer.state == 0).all()
    gradients = []
    for batch in (16, 256):
        layer.zero_grad()
        y, _ = layer(torch.randn(32, batch, 32))
        y.backward(torch.randn_like(y))
        gradients.append(rms(layer.state.grad))
    # The same for any batch, up to 3 standard errors of an RMS of 128 entries.
    assert gradients[0] == pytest.approx(gradients[1], rel=3 * (1 / 256) ** 0.5 * 2**0.5)
    with torch.no_grad():
        other = copy.deepcopy(layer)
        other.state.fill_(0.5)
        x = torch.randn(4, 2, 32)
        assert not torch.allclose(layer(x)[0], other(x)[0])


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = unn.Linear(5, 6)
        self.layer = unn.RecurrentHighway(6, 6, num_layers=2, trainable_state=True)
        self.readout, self.shift = unn.LinearReadout(6, 3), unn.PadAndShift(3)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return U.mse_loss(self.shift(self.readout(self.layer(self.input(x))[0])), target)


def test_gradients_are_valid() -> None:
    x, target = torch.randn(4, 3, 5).double(), torch.randn(4, 3, 3).double()
    assert_valid_gradients(Highway().double(), x, target)


@pytest.mark.parametrize("rebias", [float("nan"), float("inf")])
def test_bad_rebias_is_named(rebias: float) -> None:
    with pytest.raises(ValueError, match=f"rebias is {rebias}; expected a finite number"):
        unn.RecurrentHighway(5, 6, rebias=rebias)


def test_highway_refuses_weights_of_another_cell() -> None:
    with pytest.raises(ValueError, match=r"recurrent_highway: w_ih has shape \[24, 5\], expected"):
        U.recurrent_highway(torch.randn(2, 3, 5), None, torch.randn(24, 5), torch.randn(12, 6))


@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (8, 1), (8, 2)])
def test_causal_convolution_has_unit_scale(groups: int, dilation: int) -> None:
    layer = unn.CausalConv1d(64, 64, 7, groups=groups, dilation=dilation)
    output, grad, weights = measured(layer, torch.randn(16, 64, 256))
    # The 6 (12) first of 256 positions miss half of their terms: 1 - 12 / 4 / 256 at the least.
    assert 0.96 < output < 1.03
    assert 0.96 < grad < 1.03
    assert all(0.85 < value < 1.15 for value in weights.values()), weights


@pytest.mark.parametrize("options", [{}, {"dilation": 3}, {"groups": 2}, {"stride": 2}])
def test_causal_convolution_looks_back_only(options: dict) -> None:
    layer, x = unn.CausalConv1d(4, 6, 3, **options), torch.randn(2, 4, 12)
    before = layer(x)
    assert before.shape[-1] == 12 // options.get("stride", 1)
    x[:, :, 8:] += 1
    after, seen = layer(x), 8 // options.get("stride", 1)
    torch.testing.assert_close(after[..., :seen], before[..., :seen])
    assert not torch.allclose(after[..., seen:], before[..., seen:])


def test_an_ordinary_convolution_looks_ahead() -> None:
    layer, x = unn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 4, 12)
    before = layer(x)
    x[:, :, 8:] += 1
    assert not torch.allclose(layer(x)[..., :8], before[..., :8])


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": "same"}, {"padding_mode": "reflect"}]
)
def test_causal_convolution_refuses_padding(options: dict) -> None:
    with pytest.raises(ValueError, match="causal convolution pads by itself"):
        unn.CausalConv1d(4, 6, 3, **options)


def test_shift_moves_and_pads_and_has_unit_gradients() -> None:
    layer = unn.PadAndShift(512)
    nn.init.normal_(layer.pad)
    x = torch.randn(64, 8, 512)
    y = layer(x)
    assert torch.equal(y[:, 1:], x[:, :-1])
    assert torch.equal(y[:, 0], layer.pad.expand(64, 512))
    output, grad, weights = measured(layer, x)
    assert output == pytest.approx(1, abs=0.02)
    assert grad == pytest.approx((7 / 8) ** 0.5, abs=0.01)  # the last position is left out
    assert weights["pad"] == pytest.approx(1, abs=3 * (1 / 1024) ** 0.5)


@pytest.mark.parametrize(("x", "pad"), [((2, 3, 4), (3,)), ((3, 4), (4,)), ((2, 3, 4), (1, 4))])
def test_shift_refuses_other_shapes(x: tuple, pad: tuple) -> None:
    with pytest.raises(
        ValueError, match=r"pad_and_shift: input has shape .* expected \[batch, time"
    ):
        U.pad_and_shift(torch.randn(x), torch.randn(pad))
