"""How large the state of a gated recurrent cell becomes, with unit inputs and unit weights.

Every gated cell mixes its state with a candidate: `state' = keep * state + write * candidate`. With
gates and candidates as functions of normal pre-activations, the mean square q of the state is
stationary where

    q (1 - E keep**2) = E write**2 * E candidate**2 + 2 E[keep * write] * E[candidate * state].

The last term is the candidate meeting its own past, which returns through the hidden weights. It
needs the covariances of the state with its past, which follow from the same recursion, so they are
iterated together until they agree.

Source: derived here. Within 4 % of the scale of simulated LSTM, GRU and recurrent highway cells
with 256 units, for biases up to 3 and hidden sizes up to four times the input's; single draws of
the weights are most of that.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate

import numpy as np

from unitscale.scaling.constant import evaluated_once
from unitscale.scaling.curve import sigmoid
from unitscale.scaling.quadrature import Array, nodes

__all__ = ["GATED_CELLS", "stationary_mean_square"]

GATED_CELLS = ("lstm", "gru", "rhn")

LAGS = 100
ITERATIONS = 60  # 200 change an LSTM with forget bias 3, the slowest, by 0.3 %


@evaluated_once
def stationary_mean_square(cell: str, hidden_share: float, bias: float) -> float:
    """Mean square of what the cell emits.

    Args:
        cell: "lstm" (emits `gate * tanh(state)`), "gru" or "rhn" (emit the state).
        hidden_share: hidden size divided by input plus hidden size; the pre-activation of a gate
            is unit if the state is.
        bias: added to the pre-activation of `keep`: the forget gate of an LSTM, the update gate of
            a GRU, minus the update bias of a recurrent highway cell.
    """
    state = np.zeros(LAGS + 1)  # covariance of the state with itself 0, 1, 2, ... steps ago
    emitted = 0.0
    for _ in range(ITERATIONS):
        variance = 1 - hidden_share + hidden_share * emitted
        keep, keep_square = mean(sigmoid, variance, bias), mean(sigmoid_square, variance, bias)
        gate, gate_square = mean(sigmoid, variance), mean(sigmoid_square, variance)
        if cell == "lstm":
            write, write_square, keep_write = gate, gate_square, keep * gate
        else:  # write is 1 - keep
            write, keep_write = 1 - keep, keep - keep_square
            write_square = write - keep_write
        # What a candidate sees of a state: the output gate of an LSTM, the reset gate of a GRU.
        seen, heard = 1.0, variance
        if cell == "lstm":
            seen = gate * mean(tanh_slope, state[0])
        elif cell == "gru":
            seen, heard = gate, 1 - hidden_share + hidden_share * gate_square * emitted
        candidate = hidden_share * (mean(tanh_slope, heard) * seen) ** 2 * state
        # A candidate and the state 1, 2, ... steps before it, which holds earlier candidates.
        meeting = filtered(write * candidate[:0:-1], keep)[::-1]
        fresh = write_square * mean(tanh_square, heard) + 2 * keep_write * meeting[0]
        state = filtered([fresh / (1 - keep_square), *(write * meeting)], keep)
        emitted = gate_square * mean(tanh_square, state[0]) if cell == "lstm" else float(state[0])
    return emitted


def filtered(values: Iterable[float], keep: float) -> Array:
    """`y[k] = keep * y[k - 1] + values[k]`, starting from the first value."""
    return np.array(list(accumulate(values, lambda y, value: keep * y + value)))


def mean(f: Callable[[Array], Array], variance: float, shift: float = 0.0) -> float:
    """`E f(x)` for `x ~ N(shift, variance)`."""
    points, weights = nodes()
    return float((weights * f(shift + variance**0.5 * points)).sum())


def sigmoid_square(x: Array) -> Array:
    """Its mean is the mean square of a gate."""
    return sigmoid(x) ** 2


def tanh_square(x: Array) -> Array:
    """Its mean is the mean square of a candidate."""
    return np.tanh(x) ** 2


def tanh_slope(x: Array) -> Array:
    """How a candidate follows its pre-activation."""
    return 1 - np.tanh(x) ** 2
