"""`torch.gru_cell`, `lstm_cell` and `rnn_tanh_cell`, `rnn_relu_cell` in ops of their own.

input [batch, in], hidden [batch, h], w_ih [gates * h, in], w_hh [gates * h, h] -> [batch, h], by
the functions, and in the order, of ATen/native/RNN.cpp of torch (GRUCell, LSTMCell, SimpleCell).
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from unitscale.graph import dynamo
from unitscale.graph.multihead import size

__all__ = ["SIGNATURE", "gru_cell", "lstm_cell", "refusal", "simple_cell"]


def cell(input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> None:
    """What every cell of torch takes; the hx of an LSTM is a pair."""


SIGNATURE = inspect.signature(cell)


def refusal(node: fx.Node, given: dict[str, Any]) -> str | None:
    """Why torch does not compute a call as it is written here, or None if it does.

    It does on the CPU; elsewhere one kernel does it all, and autocast casts what goes in.
    """
    first: Tensor = dynamo.example(given["input"])
    result = dynamo.example(node)
    result = result[0] if isinstance(result, tuple) else result
    if first.device.type != "cpu":
        return f"on {first.device.type} one kernel computes all of it"
    return None if first.dtype == result.dtype else "autocast casts what goes into it"


def products(given: dict[str, Any], hidden: Any) -> tuple[Any, Any]:
    """What input and hidden state give to all gates; the state's product is the first, as there."""
    from_hidden = F.linear(hidden, given["w_hh"], given["b_hh"])
    return F.linear(given["input"], given["w_ih"], given["b_ih"]), from_hidden


def chunks(gates: Any, count: int) -> list[Any]:
    """The gates of a cell, [batch, h] each."""
    parts = torch.unsafe_chunk(gates, count, 1)
    return [parts[i] for i in range(count)]


def divided(gates: Any, width: int) -> list[Any]:
    """Reset and update of a GRU together, [batch, 2h], and its new state, [batch, h]."""
    parts = torch.split(gates, [2 * width, width], 1)
    return [parts[0], parts[1]]


def simple_cell(given: dict[str, Any], *, activation: Callable[[Any], Any]) -> Any:
    """The next hidden state."""
    from_input, from_hidden = products(given, given["hx"])
    return activation(from_hidden + from_input)


def lstm_cell(given: dict[str, Any]) -> tuple[Any, Any]:
    """The next hidden state and memory."""
    hidden, memory = given["hx"]
    from_input, from_hidden = products(given, hidden)
    entering, forgetting, new, leaving = chunks(from_hidden + from_input, 4)
    entering, forgetting = torch.sigmoid(entering), torch.sigmoid(forgetting)
    new, leaving = torch.tanh(new), torch.sigmoid(leaving)
    memory = forgetting * memory + entering * new
    return leaving * torch.tanh(memory), memory


def gru_cell(given: dict[str, Any]) -> Any:
    """The next hidden state.

    Reset and update are summed in one tensor and then taken apart: where each is a tensor of its
    own, torch's vectorized sigmoid may differ from the cell's in the last bit.
    """
    hidden = given["hx"]
    from_input = F.linear(given["input"], given["w_ih"], given["b_ih"])
    from_hidden = F.linear(hidden, given["w_hh"], given["b_hh"])
    width = size(given["w_hh"], 1)
    gates_of_input, new_of_input = divided(from_input, width)
    gates_of_hidden, new_of_hidden = divided(from_hidden, width)
    reset, update = (torch.sigmoid(x) for x in chunks(gates_of_hidden + gates_of_input, 2))
    new = torch.tanh(new_of_input + new_of_hidden * reset)
    return (hidden - new) * update + new
