from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitscale.functional as U

F64 = torch.float64
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


def weights(op: str, features: int, hidden: int, bias: bool = True) -> list[Tensor]:
    rows = GATES[op] * hidden
    shapes = [(rows, features), (rows, hidden)] + [(rows,)] * 2 * bias
    return [torch.randn(shape, dtype=F64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("op", "module"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_states_are_those_of_torchs_layer(op: str, module: type[nn.Module]) -> None:
    x = torch.randn(3, 7, 5, dtype=F64)
    w_ih, w_hh, b_ih, b_hh = weights(op, 5, 6)
    layer = module(5, 6, batch_first=True, dtype=F64)
    with torch.no_grad():
        for parameter, value in zip(
            layer.parameters(), (w_ih / 11**0.5, w_hh / 11**0.5, b_ih, b_hh), strict=True
        ):
            parameter.copy_(value)
    output, states = getattr(U, op)(x, None, w_ih, w_hh, b_ih, b_hh)
    want, want_states = layer(x)
    ratio = output / want
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
    for state, expected in zip(
        states if op == "lstm" else [states],
        want_states if op == "lstm" else [want_states],
        strict=True,
    ):
        torch.testing.assert_close(state, expected[0])  # plain: without the output's factor


@pytest.mark.parametrize("op", GATES)
def test_a_sequence_in_two_halves_or_step_by_step_is_the_whole(op: str) -> None:
    x = torch.randn(3, 8, 5, dtype=F64)
    parameters = weights(op, 5, 6)
    whole, last = getattr(U, op)(x, None, *parameters)
    first, states = getattr(U, op)(x[:, :4], None, *parameters)
    second, _ = getattr(U, op)(x[:, 4:], states, *parameters)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)

    zeros = torch.zeros(3, 6, dtype=F64)
    h: Any = (zeros, zeros) if op == "lstm" else zeros
    for t in range(8):
        h = getattr(U, f"{op}_cell")(x[:, t], h, *parameters, num_steps=8)
        emitted = U.rnn_output(h[0] if op == "lstm" else h, op, input_size=5)
        torch.testing.assert_close(emitted, whole[:, t])
    torch.testing.assert_close(h, last)
    grads = torch.autograd.grad(emitted.sum(), parameters)
    for got, want in zip(grads, torch.autograd.grad(whole[:, -1].sum(), parameters), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("op", ["rnn_tanh", "lstm", "gru"])
@pytest.mark.parametrize(("features", "hidden", "time"), [(64, 64, 96), (32, 128, 32)])
def test_output_is_unit_over_lengths_and_sizes(
    op: str, features: int, hidden: int, time: int
) -> None:
    parameters = [p.float() for p in weights(op, features, hidden, bias=False)]
    y, _ = getattr(U, op)(torch.randn(32, time, features), None, *parameters)
    # The start from a state of 0 costs a short sequence up to 4 %.
    assert y.std().item() == pytest.approx(1, rel=0.05)


def test_a_relu_layer_depends_on_the_draw_of_its_weights() -> None:
    """The stated limit: 0.6 to 1.5 over draws of small layers, around 1."""
    scales = []
    for _ in range(12):
        parameters = [p.float() for p in weights("rnn_relu", 64, 64, bias=False)]
        scales.append(U.rnn_relu(torch.randn(8, 64, 64), None, *parameters)[0].std())
    scales = torch.stack(scales)
    assert scales.mean().item() == pytest.approx(1, rel=0.15)
    assert scales.min() > 0.5
    assert scales.max() < 2


def test_a_forget_bias_of_one_has_its_own_factor() -> None:
    w_ih, w_hh = (p.float() for p in weights("lstm", 64, 64, bias=False))
    b_ih, b_hh = torch.zeros(256), torch.zeros(256)
    b_ih[64:128] = 1
    x = torch.randn(16, 128, 64)
    y, _ = U.lstm(x, None, w_ih, w_hh, b_ih, b_hh, forget_bias=1.0)
    assert y.std().item() == pytest.approx(1, rel=0.05)
    y, _ = U.lstm(x, None, w_ih, w_hh, b_ih, b_hh)
    assert y.std().item() > 1.15


@pytest.mark.parametrize("op", GATES)
def test_gradients_at_the_first_step_do_not_grow_with_the_sequence(op: str) -> None:
    """A gain inside the loop that made an LSTM's state unit would give 475 over 128 steps."""
    parameters = [p.float() for p in weights(op, 64, 64, bias=False)]
    x = torch.randn(8, 128, 64, requires_grad=True)
    y, _ = getattr(U, op)(x, None, *parameters)
    y.backward(torch.randn_like(y))
    assert 0.5 < x.grad[:, 0].square().mean().sqrt() < 2


def test_without_constraint_the_input_gradient_follows_the_gates() -> None:
    x = torch.randn(4, 8, 16, dtype=F64, requires_grad=True)
    parameters = weights("lstm", 16, 16, bias=False)
    grad_output = torch.randn(4, 8, 16, dtype=F64)
    free, tied = (
        torch.autograd.grad(U.lstm(x, None, *parameters, constraint=c)[0], x, grad_output)[0]
        for c in (None, "to_output_scale")
    )
    torch.testing.assert_close(free, tied * (32 / 64) ** 0.5)


X, W, V = torch.zeros(2, 3, 4), torch.zeros(20, 4), torch.zeros(20, 5)
H = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: U.lstm(X[0], None, W, V), ValueError, r"lstm: input has shape \[3, 4\], expected"),
        (lambda: U.lstm(X, None, W[:15], V), ValueError, r"w_ih has shape \[15, 4\].*\[20, 4\]"),
        (lambda: U.gru(X, None, W, V), ValueError, r"gru: w_ih has shape \[20, 4\].*\[15, 4\]"),
        (lambda: U.lstm(X, None, W, V, H), ValueError, r"b_ih has shape \[2, 5\].*\[20\]"),
        (lambda: U.lstm(X, (H, H[:1]), W, V), ValueError, r"c has shape \[1, 5\].*\[2, 5\]"),
        (lambda: U.lstm(X, (H,), W, V), ValueError, r"lstm: 1 states in hx, expected 2"),
        (lambda: U.lstm_cell(X, (H, H), W, V), ValueError, r"lstm_cell: .* \[batch, features\]"),
        (lambda: U.gru(X.long(), None, W, V), TypeError, r"gru: input has dtype torch\.int64"),
        (lambda: U.rnn_output(H, "ltsm"), ValueError, r"cell is 'ltsm', expected one of .*'lstm'"),
    ],
)
def test_a_wrong_call_says_value_and_expectation(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
