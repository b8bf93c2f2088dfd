"""Recurrent layers: plain inside, unit-scaled at both ends.

Gates and state stay as torch has them, because a factor inside the recurrence is raised to the
power of the sequence length. Scaled are the products, with one factor for both passes on the
hidden path (it is a cycle), and the sequence that leaves the layer. So a state is plain and can be
fed back, and an output is `rnn_output` of it, at unit scale. The exception is the tanh of
`rnn_tanh`, which is stable with a factor and keeps its state at unit scale.

One layer, one direction, batch first: input [batch, time, features]. Weights have torch's shapes
and gate order, [gates * hidden, features] and [gates * hidden, hidden], initialised N(0, 1), and
biases 0. The input of all time steps is multiplied by its weight at once, outside the loop.

Gradients are near unit scale, not at it, as gates and nonlinearity multiply them in the loop: those
of weights are 0.6 (GRU) to 1.7 (tanh), those of the input 1.1 to 1.2. A ReLU layer is only just
stable: its output is 0.6 to 1.5 with the draw of its weights, where the others keep to 5 %.

Under torch.compile the loop is unrolled, which takes seconds of compilation for tens of steps.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating, shape
from unitscale.scaling import scale_bwd, scale_fwd, scaled
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import RecurrentFactors, linear_factors, recurrent_factors

States = tuple[Tensor, ...]
Step = Callable[[Tensor, Callable[[Tensor], Tensor], States, float], States]


def step_simple(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    product: Callable[[Tensor], Tensor],
    states: States,
    gain: float,
) -> States:
    """`h = gain * f(x + W h)`."""
    return (scaled(function(x + product(states[0])), gain, gain),)


def step_lstm(
    x: Tensor, product: Callable[[Tensor], Tensor], states: States, gain: float
) -> States:
    """Input, forget and output gate, and the candidate g: `c = f c + i g`, `h = o tanh(c)`."""
    h, c = states
    i, f, g, o = (x + product(h)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def step_gru(x: Tensor, product: Callable[[Tensor], Tensor], states: States, gain: float) -> States:
    """Reset gate r inside the candidate n, update gate z: `h = (1 - z) n + z h`."""
    h = states[0]
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), product(h).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (n + z * (h - n),)


# The step of each cell, its gates and its states.
CELLS: dict[str, tuple[Step, int, int]] = {
    "rnn_tanh": (partial(step_simple, torch.tanh), 1, 1),
    "rnn_relu": (partial(step_simple, torch.relu), 1, 1),
    "lstm": (step_lstm, 4, 2),
    "gru": (step_gru, 3, 1),
}


def run(
    cell: str,
    input: Tensor,
    states: States | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    constraint: str | None,
    bias: float | None = None,
) -> tuple[Tensor, States]:
    """All steps of one layer: the emitted sequence, and the last plain states."""
    check_recurrent(cell, cell, input, 3, states, w_ih, w_hh, b_ih, b_hh)
    batch, time = input.shape[:2]
    factors = recurrent_factors(cell, input.shape[-1], w_hh.shape[-1], batch * time, bias=bias)
    projected, product = project(cell, input, w_ih, w_hh, b_ih, b_hh, factors, constraint)
    if states is None:
        states = (input.new_zeros(batch, w_hh.shape[-1]),) * CELLS[cell][2]
    step, outputs = CELLS[cell][0], []
    for x in projected.unbind(1):
        states = step(x, product, states, factors.activation_scale)
        outputs.append(states[0])
    return scaled(torch.stack(outputs, 1), factors.emit_scale, factors.emit_scale), states


def run_cell(
    cell: str,
    input: Tensor,
    states: States,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    num_steps: int,
    constraint: str | None,
) -> States:
    """One step; its weights are used `num_steps` times in all."""
    check_recurrent(f"{cell}_cell", cell, input, 2, states, w_ih, w_hh, b_ih, b_hh)
    rows = input.shape[0] * num_steps
    factors = recurrent_factors(cell, input.shape[-1], w_hh.shape[-1], rows)
    projected, product = project(cell, input, w_ih, w_hh, b_ih, b_hh, factors, constraint)
    return CELLS[cell][0](projected, product, states, factors.activation_scale)


def project(
    cell: str,
    input: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    factors: RecurrentFactors,
    constraint: str | None,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The input through its weight, and the function that takes a hidden state through its own."""
    scale, weight_scale = factors.matmul_scale, factors.grad_weight_scale
    output_scale, grad_input_scale = apply_constraint(
        constraint, scale, linear_factors(w_ih.shape[1], w_ih.shape[0], 1).grad_input_scale
    )
    input = scale_bwd(input, grad_input_scale)
    projected = scale_fwd(F.linear(input, scale_bwd(w_ih, weight_scale)), output_scale)
    bias, hidden_bias = (None if b is None else scale_bwd(b, weight_scale) for b in (b_ih, b_hh))
    if bias is not None:
        projected = projected + bias
    if hidden_bias is not None and cell != "gru":  # whose reset gate multiplies it
        projected, hidden_bias = projected + hidden_bias, None
    # A state is smaller than a unit tensor by the factor that it is emitted with, and so is the
    # gradient of the weight that it is multiplied by.
    weight = scale_bwd(w_hh, weight_scale * factors.emit_scale)

    def product(h: Tensor) -> Tensor:
        output = scale_fwd(F.linear(scale_bwd(h, scale), weight), scale)
        return output if hidden_bias is None else output + hidden_bias

    return projected, product


def rnn_output(
    h: Tensor, cell: str, *, input_size: int | None = None, bias: float | None = None
) -> Tensor:
    """A plain state as what the layer emits, at unit scale: for loops of your own over a cell.

    Args:
        h: [..., hidden].
        cell: "rnn_tanh", "rnn_relu", "lstm" or "gru".
        input_size: features of the layer's input; None means as many as hidden ones.
        bias: initial bias of the LSTM's forget gate or the GRU's update gate; None means 0.
    Raises:
        ValueError: another cell.
    """
    check_floating("rnn_output", h=h)
    if cell not in CELLS:
        raise ValueError(
            f"rnn_output: cell is {cell!r}, expected one of {', '.join(map(repr, CELLS))}."
        )
    hidden = h.shape[-1]
    features = hidden if input_size is None else input_size
    scale = recurrent_factors(cell, features, hidden, 1, bias=bias).emit_scale
    return scaled(h, scale, scale)


def rnn_tanh(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    constraint: str | None = "to_output_scale",
) -> tuple[Tensor, Tensor]:
    """`h = c * tanh(W x + U h)` over a sequence; c keeps the state at unit scale.

    Returns the output [batch, time, hidden] at unit scale, and the last plain state.

    Args:
        input: [batch, time, features].
        hx: plain state [batch, hidden]; None starts from 0.
        constraint: ties output and input of the product with `w_ih`.
    """
    states = None if hx is None else (hx,)
    output, (h,) = run("rnn_tanh", input, states, w_ih, w_hh, b_ih, b_hh, constraint)
    return output, h


def rnn_relu(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    constraint: str | None = "to_output_scale",
) -> tuple[Tensor, Tensor]:
    """`h = c * relu(W x + U h)` over a sequence; c = sqrt(2) keeps the mean square of the state.

    Returns the output [batch, time, hidden] at unit scale, and the last plain state.

    Args:
        input: [batch, time, features].
        hx: plain state [batch, hidden]; None starts from 0.
        constraint: ties output and input of the product with `w_ih`.
    """
    states = None if hx is None else (hx,)
    output, (h,) = run("rnn_relu", input, states, w_ih, w_hh, b_ih, b_hh, constraint)
    return output, h


def gru(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    constraint: str | None = "to_output_scale",
) -> tuple[Tensor, Tensor]:
    """A gated recurrent unit over a sequence.

    Returns the output [batch, time, hidden] at unit scale, and the last plain state.

    Args:
        input: [batch, time, features].
        hx: plain state [batch, hidden]; None starts from 0.
        constraint: ties output and input of the product with `w_ih`.
    """
    states = None if hx is None else (hx,)
    output, (h,) = run("gru", input, states, w_ih, w_hh, b_ih, b_hh, constraint)
    return output, h


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    constraint: str | None = "to_output_scale",
    *,
    forget_bias: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A long short-term memory over a sequence.

    Returns the output [batch, time, hidden] at unit scale, and the last plain states `(h, c)`.

    Args:
        input: [batch, time, features].
        hx: plain states `(h, c)`, each [batch, hidden]; None starts from 0.
        constraint: ties output and input of the product with `w_ih`.
        forget_bias: what the forget gate's bias starts at; it sets the size of the state, and so
            the factor of the output.
    """
    output, (h, c) = run("lstm", input, hx, w_ih, w_hh, b_ih, b_hh, constraint, forget_bias)
    return output, (h, c)


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    num_steps: int = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """One step of `rnn_tanh`: [batch, features] and a plain state to the next plain state.

    Args:
        num_steps: how often the weights are used in the loop around this cell.
    """
    (h,) = run_cell("rnn_tanh", input, (hx,), w_ih, w_hh, b_ih, b_hh, num_steps, constraint)
    return h


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    num_steps: int = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """One step of `rnn_relu`: [batch, features] and a plain state to the next plain state.

    Args:
        num_steps: how often the weights are used in the loop around this cell.
    """
    (h,) = run_cell("rnn_relu", input, (hx,), w_ih, w_hh, b_ih, b_hh, num_steps, constraint)
    return h


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    num_steps: int = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """One step of `gru`: [batch, features] and a plain state to the next plain state.

    Args:
        num_steps: how often the weights are used in the loop around this cell.
    """
    (h,) = run_cell("gru", input, (hx,), w_ih, w_hh, b_ih, b_hh, num_steps, constraint)
    return h


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    num_steps: int = 1,
    constraint: str | None = "to_output_scale",
) -> tuple[Tensor, Tensor]:
    """One step of `lstm`: [batch, features] and plain states to the next plain states `(h, c)`.

    Args:
        num_steps: how often the weights are used in the loop around this cell.
    """
    h, c = run_cell("lstm", input, hx, w_ih, w_hh, b_ih, b_hh, num_steps, constraint)
    return h, c


def check_recurrent(
    op: str,
    cell: str,
    input: Tensor,
    dim: int,
    states: States | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> None:
    """Shapes of input, states and parameters."""
    check_floating(op, input=input, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    gates, num_states = (2, 1) if cell == "rhn" else CELLS[cell][1:]
    if input.dim() != dim:
        expected = "[batch, time, features]" if dim == 3 else "[batch, features]"
        raise ValueError(f"{op}: input has shape {shape(input)}, expected {expected}.")
    hidden = w_hh.shape[-1]
    wanted = {
        "w_ih": (w_ih, [gates * hidden, input.shape[-1]]),
        "w_hh": (w_hh, [gates * hidden, hidden]),
        "b_ih": (b_ih, [gates * hidden]),
        "b_hh": (b_hh, [gates * hidden]),
    }
    if states is not None:
        if len(states) != num_states:
            raise ValueError(f"{op}: {len(states)} states in hx, expected {num_states}.")
        for name, state in zip(("hx", "c"), states, strict=False):
            wanted[name] = (state, [input.shape[0], hidden])
    for name, (tensor, sizes) in wanted.items():
        if tensor is not None and list(tensor.shape) != sizes:
            raise ValueError(
                f"{op}: {name} has shape {shape(tensor)}, expected {sizes} for an input of shape "
                f"{shape(input)} and {hidden} hidden features."
            )
