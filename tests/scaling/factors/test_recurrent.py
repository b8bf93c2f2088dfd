import pytest
import torch
from torch import nn

from scaling.measure import rms
from unitscale.scaling.factors import CELLS, recurrent_factors

INPUT, HIDDEN, STEPS, BATCH = 128, 128, 64, 64

TORCH_CELLS = {
    "rnn_tanh": nn.RNNCell,
    "rnn_relu": lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu"),
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("rnn_tanh", 0.95, 1.05),
        ("lstm", 0.95, 1.05),
        ("gru", 0.95, 1.05),
        # The loop gain of a ReLU layer is 1, so its scale follows the draw of the weights.
        ("rnn_relu", 0.7, 1.3),
    ],
)
def test_sequences_are_emitted_at_unit_scale(name, low, high):
    got = recurrent_factors(name, INPUT, HIDDEN, BATCH * STEPS)
    cell = TORCH_CELLS[name](INPUT, HIDDEN)
    with torch.no_grad():
        for key, value in cell.named_parameters():
            value.copy_(
                got.matmul_scale * torch.randn_like(value) if "weight" in key else 0 * value
            )
        state = torch.zeros(BATCH, HIDDEN)
        state = (state, state) if name == "lstm" else state
        sequence = []
        for _ in range(STEPS):
            state = cell(torch.randn(BATCH, INPUT), state)
            if name.startswith("rnn"):
                state = state * got.activation_scale
            sequence.append(state[0] if name == "lstm" else state)
    emitted = torch.stack(sequence) * got.emit_scale
    assert low < rms(emitted - emitted.mean()) < high


@pytest.mark.parametrize(
    ("cell", "bias", "emitted"),
    [("lstm", None, 6.4), ("lstm", 1.0, 5.3), ("gru", None, 3.04), ("rhn", None, 3.9)],
)
def test_emitted_scale_matches_published_measurements(cell, bias, emitted):
    """Measured with 64 to 512 units over 32 to 128 steps, two digits."""
    got = recurrent_factors(cell, 64, 64, 1, bias=bias).emit_scale
    assert got == pytest.approx(emitted, rel=0.02)


def test_plain_cells_have_their_activations_factor_inside():
    tanh, relu = (recurrent_factors(name, 4, 12, 100) for name in ("rnn_tanh", "rnn_relu"))
    assert tanh.activation_scale == pytest.approx(1.592537, abs=1e-6)
    assert tanh.emit_scale == 1
    assert relu.activation_scale == pytest.approx(2**0.5)
    assert relu.activation_scale * relu.emit_scale == pytest.approx(1.712859, abs=1e-6)
    assert tanh.matmul_scale == 1 / 4
    assert tanh.grad_weight_scale == 1 / 10


def test_unknown_cell_is_refused():
    with pytest.raises(ValueError, match=f"'lstn', expected one of {', '.join(CELLS)}"):
        recurrent_factors("lstn", 4, 4, 4)
