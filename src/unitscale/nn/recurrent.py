"""RNN, LSTM and GRU, torch's modules, and recurrent highway: loops whose products a recipe sees."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import unitscale.functional as U
from unitscale.scaling import scale_bwd

from .dropout import Dropout


class Recurrent(nn.Module):
    """What the three share: layers, directions, batch axis and dropout between layers.

    Parameters have torch's names, shapes and gate order; weights start as N(0, 1), biases at 0.
    The output has unit scale. States stay plain (forcing unit scale on them makes the feedback
    loop's gain exceed 1), so the state that is returned is a plain one, to be passed on as it is.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as torch's.
        constraint: of the op's output factor and input gradient.
    """

    gates: int  # rows of each weight, in units of hidden_size
    layer: Callable[..., Any]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        constraint: str | None = "to_output_scale",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.constraint = constraint
        self.dropout = Dropout(dropout) if dropout and num_layers > 1 else nn.Identity()
        rows = self.gates * hidden_size
        for level in range(num_layers):
            columns = input_size if level == 0 else hidden_size * (1 + bidirectional)
            for suffix in self.suffixes(level):
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, columns),
                    "weight_hh": (rows, hidden_size),
                }
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_{suffix}", parameter)
        self.reset_parameters()

    def options(self) -> dict[str, Any]:
        """What the op is called with besides tensors."""
        return {"constraint": self.constraint}

    def suffixes(self, level: int) -> list[str]:
        """torch's names of a layer's directions."""
        return [f"l{level}", f"l{level}_reverse"] if self.bidirectional else [f"l{level}"]

    @property
    def parameter_kinds(self) -> dict[str, str]:
        """u-muP kinds: matrices are hidden."""
        return {
            name: "hidden" if name.startswith("weight") else "bias"
            for name, _ in self.named_parameters(recurse=False)
        }

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 1) and zero the biases."""
        for name, parameter in self.named_parameters(recurse=False):
            (nn.init.normal_ if name.startswith("weight") else nn.init.zeros_)(parameter)

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Run over time.

        Args:
            x: [time, batch, features], or [batch, time, features] if `batch_first`.
            hx: the first state, [layers * directions, batch, hidden_size] (a pair for the LSTM);
                None is zeros.
        Returns:
            The output [.., hidden_size * directions] and the last state, shaped as `hx`.
        """
        x = x if self.batch_first else x.transpose(0, 1)
        states: list[Any] = []
        for level in range(self.num_layers):
            outputs = []
            for suffix in self.suffixes(level):
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
                output, state = self.layer(
                    x.flip(1) if suffix.endswith("reverse") else x,
                    None if hx is None else pick(hx, len(states)),
                    *(getattr(self, f"{name}_{suffix}") for name in names),
                    **self.options(),
                )
                outputs.append(output.flip(1) if suffix.endswith("reverse") else output)
                states.append(state)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if level + 1 < self.num_layers:
                x = self.dropout(x)
        return (x if self.batch_first else x.transpose(0, 1)), stack(states)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


class RNN(Recurrent):
    """torch.nn.RNN's arguments, `nonlinearity` as a keyword, and `constraint`."""

    gates = 1

    def __init__(self, *args: Any, nonlinearity: str = "tanh", **options: Any) -> None:
        layers = {"tanh": U.rnn_tanh, "relu": U.rnn_relu}
        if nonlinearity not in layers:
            raise ValueError(f"RNN: unknown nonlinearity {nonlinearity!r}; use tanh or relu.")
        super().__init__(*args, **options)
        self.layer = layers[nonlinearity]


class LSTM(Recurrent):
    """torch.nn.LSTM's arguments, `proj_size` apart, and `constraint`."""

    gates = 4
    layer = staticmethod(U.lstm)


class GRU(Recurrent):
    """torch.nn.GRU's arguments and `constraint`."""

    gates = 3
    layer = staticmethod(U.gru)


class RecurrentHighway(Recurrent):
    """The recurrent highway layer of the paper's character models, U.recurrent_highway.

    The arguments are torch.nn.GRU's, `constraint`, and two of the cell's own. Parameters have the
    names of torch's; their rows are those of the update gate, then those of the candidate.

    Args:
        rebias: taken from the update gate; above 0 the state changes slowly at the start.
        trainable_state: the first state is a parameter of each layer and direction, 0 at first, and
            not zeros. Its gradient is at unit scale for any batch, and its kind is "bias".
    Raises:
        ValueError: `rebias` is not a finite number.
    """

    gates = 2
    layer = staticmethod(U.recurrent_highway)

    def __init__(
        self, *args: Any, rebias: float = 1.0, trainable_state: bool = False, **options: Any
    ) -> None:
        if not math.isfinite(rebias):
            raise ValueError(f"RecurrentHighway: rebias is {rebias}; expected a finite number.")
        super().__init__(*args, **options)
        self.rebias = float(rebias)
        self.state: nn.Parameter | None = None
        if trainable_state:
            count, weight = self.num_layers * (1 + self.bidirectional), next(self.parameters())
            self.state = nn.Parameter(weight.new_zeros(count, 1, self.hidden_size))

    def options(self) -> dict[str, Any]:
        """With the bias of the gate."""
        return super().options() | {"rebias": self.rebias}

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """As `Recurrent`'s; without `hx` a trainable state is the first."""
        if hx is None and self.state is not None:
            batch = x.shape[0 if self.batch_first else 1]
            hx = scale_bwd(self.state, max(batch, 1) ** -0.5).expand(-1, batch, -1)
        return super().forward(x, hx)


def pick(hx: Any, index: int) -> Any:
    """The state of one layer and direction."""
    return tuple(part[index] for part in hx) if isinstance(hx, tuple) else hx[index]


def stack(states: list[Any]) -> Any:
    """One state out of those of all layers and directions."""
    if isinstance(states[0], tuple):
        return tuple(torch.stack(part) for part in zip(*states, strict=True))
    return torch.stack(states)
