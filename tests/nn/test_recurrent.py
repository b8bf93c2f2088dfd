"""RNN, LSTM, GRU: torch's function on scaled weights, layers, directions, states."""

import pytest
import torch
from torch import nn

import unitscale.functional as U
from unitscale import nn as unn
from validity import assert_valid_gradients

MODULES = [unn.RNN, unn.LSTM, unn.GRU]


@pytest.mark.parametrize("cls", MODULES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_and_shapes_are_torchs(cls: type, bidirectional: bool, bias: bool) -> None:
    options = {"num_layers": 2, "bidirectional": bidirectional, "bias": bias}
    ours, torchs = cls(5, 6, **options), getattr(nn, cls.__name__)(5, 6, **options)
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in torchs.named_parameters()
    }
    x = torch.randn(7, 2, 5)
    for got, want in zip(leaves(ours(x)), leaves(torchs(x)), strict=True):
        assert got.shape == want.shape


def leaves(result: tuple) -> list[torch.Tensor]:
    output, state = result
    return [output, *(state if isinstance(state, tuple) else [state])]


@pytest.mark.parametrize("cls", [unn.LSTM, unn.GRU])
def test_plain_state_is_torchs_on_scaled_weights(cls: type) -> None:
    ours, torchs = cls(10, 6), getattr(nn, cls.__name__)(10, 6)
    with torch.no_grad():
        for name, parameter in torchs.named_parameters():
            own = getattr(ours, name)
            own.normal_()
            parameter.copy_(own / 4 if name.startswith("weight") else own)  # sqrt(10 + 6)
    x = torch.randn(7, 2, 10)
    for got, want in zip(leaves(ours(x))[1:], leaves(torchs(x))[1:], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("cls", MODULES)
def test_state_carries_a_sequence_on(cls: type) -> None:
    layer = cls(5, 6, batch_first=True)
    x = torch.randn(2, 8, 5)
    whole, _ = layer(x)
    first, state = layer(x[:, :3])
    second, _ = layer(x[:, 3:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)


@pytest.mark.parametrize("cls", MODULES)
def test_reverse_direction_runs_backward(cls: type) -> None:
    layer = cls(5, 6, bidirectional=True)
    forward = cls(5, 6)
    state = layer.state_dict()
    forward.load_state_dict({n: state[f"{n}_reverse"] for n in forward.state_dict()})
    x = torch.randn(7, 2, 5)
    torch.testing.assert_close(layer(x)[0][..., 6:], forward(x.flip(0))[0].flip(0))


@pytest.mark.parametrize("cls", MODULES)
def test_output_has_unit_scale(cls: type) -> None:
    layer = cls(128, 128)
    x = torch.randn(32, 64, 128, requires_grad=True)
    y, _ = layer(x)
    y.backward(torch.randn_like(y))
    assert 0.9 < y.std() < 1.1
    assert 0.9 < x.grad.square().mean().sqrt() < 1.3
    for name, parameter in layer.named_parameters():
        if name.startswith("weight"):
            assert 0.4 < parameter.grad.square().mean().sqrt() < 1.8, name


def test_rnn_nonlinearity() -> None:
    tanh, relu = unn.RNN(5, 6), unn.RNN(5, 6, nonlinearity="relu")
    relu.load_state_dict(tanh.state_dict())
    x = torch.randn(7, 2, 5)
    assert (relu(x)[0] >= 0).all()
    assert not torch.allclose(tanh(x)[0], relu(x)[0])
    with pytest.raises(ValueError, match="unknown nonlinearity 'gelu'"):
        unn.RNN(5, 6, nonlinearity="gelu")


class Tagger(nn.Module):
    def __init__(self, cls: type) -> None:
        super().__init__()
        self.input = unn.Linear(5, 6)
        self.recurrent = cls(6, 6, num_layers=2, bidirectional=True, dropout=0.2)
        self.readout = unn.LinearReadout(12, 3)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        y, _ = self.recurrent(self.input(x))
        return U.mse_loss(self.readout(y), target)


@pytest.mark.parametrize("cls", MODULES)
def test_gradients_are_valid(cls: type) -> None:
    x, target = torch.randn(4, 3, 5).double(), torch.randn(4, 3, 3).double()
    assert_valid_gradients(Tagger(cls).double(), x, target)
