"""Factors of recurrent layers.

Gates and candidates stay plain. A gain inside the loop that made an LSTM's cell unit would have a
loop gain above 1, and the gradient of the first input would grow with the sequence (475-fold over
128 steps); so only the emitted sequence is multiplied, outside the loop. A plain tanh or ReLU layer
is stable with its activation's own factor inside.
"""

import operator

from unitscale.scaling.constant import constant
from unitscale.scaling.factors.activation import activation_factors
from unitscale.scaling.factors.result import RecurrentFactors, count_scale
from unitscale.scaling.recurrence import GATED_CELLS, stationary_mean_square

__all__ = ["CELLS", "recurrent_factors"]

CELLS = ("rnn_tanh", "rnn_relu", *GATED_CELLS)


def recurrent_factors(
    cell: str, input_size: int, hidden_size: int, rows: int, *, bias: float | None = None
) -> RecurrentFactors:
    """One layer, one direction; the input is unit and the state starts at 0.

    `matmul_scale = (input_size + hidden_size)**-0.5`, both passes, as the state feeds back;
    weights and biases `rows**-0.5`. Emitted: LSTM 6.37, with forget bias 1 5.26; GRU 3.04;
    recurrent highway 3.84 with update bias -1, for equal input and hidden sizes. tanh has 1.593
    inside the loop; ReLU `sqrt(2)`, which keeps its mean square at 1, and 1.211 outside.

    Args:
        cell: one of `CELLS`.
        input_size: Python int (a symbolic one is made constant).
        hidden_size: likewise.
        rows: sequences times steps.
        bias: of the LSTM's forget gate (default 0), the GRU's update gate (0) or the recurrent
            highway cell's update gate (-1), at initialization.
    Raises:
        ValueError: unknown cell.
    Source: matrix products as in Blake et al. 2023; emitted scale derived in
        `unitscale.scaling.recurrence`, with a state that has become stationary: a short sequence
        emits less (0.98 for the first 32 steps of an LSTM with forget bias 1).
    """
    if cell not in CELLS:
        raise ValueError(f"unknown recurrent cell {cell!r}, expected one of {', '.join(CELLS)}.")
    input_size, hidden_size = operator.index(input_size), operator.index(hidden_size)
    inside, emitted = 1.0, 1.0
    if cell == "rnn_tanh":
        inside = activation_factors("tanh").output_scale
    elif cell == "rnn_relu":
        inside = activation_factors("relu", center="rms").output_scale
        emitted = activation_factors("relu").output_scale / inside
    else:
        keep_bias = (-1.0 if cell == "rhn" else 0.0) if bias is None else bias
        if cell == "rhn":
            keep_bias = -keep_bias
        share = hidden_size / (input_size + hidden_size)
        emitted = stationary_mean_square(cell, share, constant(keep_bias)) ** -0.5
    return RecurrentFactors(
        matmul_scale=count_scale(input_size + hidden_size),
        activation_scale=inside,
        emit_scale=emitted,
        grad_weight_scale=count_scale(rows),
    )
