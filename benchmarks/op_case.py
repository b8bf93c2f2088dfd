"""What a case of the table of scales is, and the families of cases that share a form."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import unitscale.functional as U
from unitscale.scaling.factors import (
    Factors,
    activation_factors,
    attention_factors,
    gated_factors,
    recurrent_factors,
    softmax_factors,
)

DEFAULT = "to_output_scale"

HIDDEN = 128  # features of the recurrent layers

TIED = "tied to the output by the constraint"
LOSS = "torch's value"
BORDER = "the border has fewer terms"

Draw = Callable[[], Tensor]


def normal(*shape: int) -> Draw:
    """Standard normal entries."""
    return lambda: torch.randn(shape)


def zeros(*shape: int) -> Draw:
    """An initial bias."""
    return lambda: torch.zeros(shape)


def ones(*shape: int) -> Draw:
    """An initial gain."""
    return lambda: torch.ones(shape)


def ids(high: int, *shape: int) -> Draw:
    """Uniform integers below `high`."""
    return lambda: torch.randint(high, shape)


def distribution(*shape: int) -> Draw:
    """Probabilities along axis 1, as a teacher gives them."""
    return lambda: torch.softmax(torch.randn(shape), 1)


def fill(value: float, *shape: int) -> Draw:
    """One value throughout."""
    return lambda: torch.full(shape, value)


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operation on some operands, and what its tensors should measure.

    operands: in the operation's order; floating-point ones are differentiated.
    options: further arguments of both the operation and torch's.
    constraints: those to measure; empty for an operation that has no such argument.
    run, plain: the operation and torch's, where they are not called alike under one name.
    expected: by tensor name, what is not 1 without a constraint, and why.
    given_up: by tensor name, what is not 1 under the constraint.
    constants: operands that are data, not differentiated.
    independent: how many entries of the smallest tensor are independent, if fewer than all.
    """

    op: str
    shape: str
    operands: dict[str, Draw]
    options: dict[str, Any] = field(default_factory=dict)
    constraints: tuple[str | None, ...] = (None, DEFAULT)
    run: Callable[..., Any] | None = None
    plain: Callable[..., Any] | None = None
    expected: dict[str, tuple[float, str]] = field(default_factory=dict)
    given_up: dict[str, float] = field(default_factory=dict)
    constants: tuple[str, ...] = ()
    independent: int | None = None

    @property
    def name(self) -> str:
        """Name of the case: operation and shape."""
        return f"{self.op} {self.shape}"

    @property
    def is_loss(self) -> bool:
        """Whether the output is a value to be read, whose incoming gradient is 1."""
        return self.expected.get("output", (1.0, ""))[1] == LOSS

    def draw(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Operands of this case; the floating-point ones in `dtype` and differentiable."""
        operands = {name: make() for name, make in self.operands.items()}
        return {
            name: x.to(dtype).requires_grad_(name not in self.constants)
            if x.is_floating_point()
            else x
            for name, x in operands.items()
        }

    def call(self, operands: dict[str, Tensor], constraint: str | None) -> Tensor:
        """The unit-scaled operation."""
        options = self.options | ({"constraint": constraint} if self.constraints else {})
        return (self.run or getattr(U, self.op))(*operands.values(), **options)

    def call_torch(self, operands: dict[str, Tensor]) -> Tensor:
        """The operation of torch that it is made of."""
        function = self.plain or getattr(F, self.op, None) or getattr(torch, self.op)
        return function(*operands.values(), **self.options)

    def wanted(self, constraint: str | None) -> dict[str, tuple[float, str]]:
        """What is not 1: value and reason by tensor name."""
        if constraint is None:
            return self.expected
        return self.expected | {name: (value, TIED) for name, value in self.given_up.items()}


def tied(factors: Factors) -> float:
    """Scale of the gradient of a single input that is tied to the output."""
    return factors.output_scale / factors.grad_input_scale


def activation(op: str, **params: Any) -> Case:
    """An activation function; its constrained gradient follows from the two factors."""
    return Case(
        op=op,
        shape="256x1024" + "".join(f", {key}={value}" for key, value in params.items()),
        operands={"input": normal(256, 1024)},
        options=params,
        given_up={"input": tied(activation_factors(op, **params))},
    )


def softmax(op: str, rows: int, size: int) -> Case:
    """Softmax, whose RMS is 1; the table has the spread about the mean."""
    factors, by_spread = softmax_factors(size), softmax_factors(size, center="std")
    return Case(
        op=op,
        shape=f"{rows}x{size}",
        operands={"input": normal(rows, size)},
        options={"dim": -1},
        expected={"output": (factors.output_scale / by_spread.output_scale, "RMS 1 with its mean")},
        given_up={"input": tied(factors)},
    )


def gated(op: str, name: str, function: Callable[[Tensor], Tensor]) -> Case:
    """A gated unit of two operands."""
    factors = gated_factors(name)
    return Case(
        op=op,
        shape="256x1024",
        operands={"input": normal(256, 1024), "gate": normal(256, 1024)},
        plain=lambda value, gate: value * function(gate),
        given_up={"gate": factors.output_scale / factors.grad_gate_scale},
    )


def convolution(
    op: str, size: tuple[int, ...], channels: tuple[int, int], kernel: int, **options: Any
) -> Case:
    """A convolution of 4 images."""
    axes, groups, stride = len(size), options.get("groups", 1), options.get("stride", 1)
    padding = options.get("padding", 0)
    is_transposed = "transpose" in op
    first, second = channels if is_transposed else channels[::-1]
    text = f"4x{channels[0]}x{'x'.join(map(str, size))} -> {channels[1]}, kernel {kernel}"
    # Per axis, what the border takes away of the windows of an entry, and padding of the taps.
    length = size[0]
    if is_transposed:
        windows = length * stride / ((length - 1) * stride + kernel)
        ratio = channels[1] / channels[0] * stride**axes
        border = {"output": windows}
    elif padding:  # kernel 3, padding 1, stride 1
        windows = (length - 2 / kernel) / length
        ratio = channels[1] / channels[0]
        border = {"output": windows, "input": windows, "weight": windows}
    else:
        windows = ((length - kernel) // stride + 1) * stride / length
        ratio = channels[1] / channels[0] / stride**axes
        border = {"input": windows}
    expected = {name: share ** (axes / 2) for name, share in border.items()}
    return Case(
        op=op,
        shape=text + "".join(f", {key} {value}" for key, value in options.items()),
        operands={
            "input": normal(4, channels[0], *size),
            "weight": normal(first, second // groups, *(kernel,) * axes),
            "bias": zeros(channels[1]),
        },
        options=options,
        expected={name: (value, BORDER) for name, value in expected.items()},
        given_up={"input": ratio**0.5 * expected.get("input", 1.0)},
    )


def attention(shape: tuple[int, int, int], **options: Any) -> Case:
    """Self-attention of 4 sequences and 8 heads."""
    heads, length, head_dim = shape
    grouped = options.get("enable_gqa")
    text = f"4x8x{length}x{head_dim}" + (f", {heads} kv heads" if grouped else "")
    text += "".join(f", {key}" for key, value in options.items() if value is True)
    text += f", mult={options['mult']}" if "mult" in options else ""
    factors = attention_factors(
        length,
        head_dim,
        is_causal=options.get("is_causal", False),
        mult=options.get("mult", 1.0),
        num_query_heads=8,
        num_key_heads=heads,
    )
    return Case(
        op="scaled_dot_product_attention",
        shape=text,
        operands={
            "query": normal(4, 8, length, head_dim),
            "key": normal(4, heads, length, head_dim),
            "value": normal(4, heads, length, head_dim),
        },
        options=options,
        independent=4 * heads * head_dim,  # nearly uniform weights: all queries get one mean
        plain=lambda q, k, v, mult=1.0, **kw: F.scaled_dot_product_attention(
            q, k, v, scale=mult / head_dim, **kw
        ),
        given_up={
            "query": factors.output_scale / factors.grad_query_scale,
            "key": factors.output_scale / factors.grad_key_scale,
            "value": factors.output_scale / factors.grad_value_scale,
        },
    )


def loss(op: str, shape: str, operands: dict[str, Draw], **more: Any) -> Case:
    """A loss: its value is torch's, the gradient of its input has scale 1."""
    return Case(
        op=op,
        shape=shape,
        operands=operands,
        constraints=(),
        expected={"output": (0.0, LOSS)} | more.pop("expected", {}),
        constants=("target", "weight", "pos_weight"),
        **more,
    )


def recurrent(op: str, gates: int, **expected: float) -> Case:
    """A layer over a sequence; the gates take away from its gradients."""
    why = "gates and nonlinearity multiply gradients inside the loop"
    return Case(
        op=op,
        shape="16x64x128 -> 128",
        operands={
            "input": normal(16, 64, HIDDEN),
            "w_ih": normal(gates * HIDDEN, HIDDEN),
            "w_hh": normal(gates * HIDDEN, HIDDEN),
        },
        run=lambda x, w_ih, w_hh, **kw: getattr(U, op)(x, None, w_ih, w_hh, **kw)[0],
        plain=lambda x, w_ih, w_hh: plain_sequence(op, x, w_ih, w_hh),
        constraints=(DEFAULT,),
        given_up={},
        expected={name: (value, why) for name, value in expected.items()},
    )


def cell(op: str, gates: int, **expected: float) -> Case:
    """One step from a state of unit scale."""
    why = "a plain state, which rnn_output scales"

    def run(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, **kw: Any) -> Tensor:
        states = (h, h * 2) if op == "lstm_cell" else h
        new = getattr(U, op)(x, states, w_ih, w_hh, **kw)
        return new[0] if op == "lstm_cell" else new

    return Case(
        op=op,
        shape="1024x128 -> 128",
        operands={
            "input": normal(1024, HIDDEN),
            "h": normal(1024, HIDDEN),
            "w_ih": normal(gates * HIDDEN, HIDDEN),
            "w_hh": normal(gates * HIDDEN, HIDDEN),
        },
        run=run,
        plain=lambda x, h, w_ih, w_hh: plain_step(
            op.removesuffix("_cell"), x, h, h * 2, w_ih, w_hh
        )[0],
        constraints=(DEFAULT,),
        expected={name: (value, why) for name, value in expected.items()},
    )


def plain_sequence(op: str, x: Tensor, w_ih: Tensor, w_hh: Tensor) -> Tensor:
    """All states h of a layer without biases, from states of 0."""
    h = c = x.new_zeros(x.shape[0], HIDDEN)
    outputs = []
    for step in x.unbind(1):
        h, c = plain_step(op, step, h, c, w_ih, w_hh)
        outputs.append(h)
    return torch.stack(outputs, 1)


def plain_step(
    op: str, x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Torch's cell, its weights (and a simple cell's state) multiplied as ours are."""
    w_ih, w_hh = w_ih * (2 * HIDDEN) ** -0.5, w_hh * (2 * HIDDEN) ** -0.5
    if op == "recurrent_highway":
        update, candidate = F.linear(x, w_ih).add(F.linear(h, w_hh)).chunk(2, -1)
        return torch.lerp(h, candidate.tanh(), (update - 1).sigmoid()), c
    if op == "lstm":
        return torch.lstm_cell(x, (h, c), w_ih, w_hh)
    h = getattr(torch, f"{op}_cell")(x, h, w_ih, w_hh)
    gain = recurrent_factors(op, HIDDEN, HIDDEN, 1).activation_scale
    return h * gain, c
