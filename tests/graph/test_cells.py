"""Recurrent cells, captured as one op each, are written out and compute the same to the bit."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from marks import all_but, slow
from units.training import assert_trains_as_plain, assert_written_out, ops
from unitscale.units import apply_recipe, rows, unit_scale

LENGTH, BATCH = 4, 3


def relu_cell(*sizes: int, bias: bool = True) -> nn.Module:
    return nn.RNNCell(*sizes, bias=bias, nonlinearity="relu")


KINDS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "tanh": nn.RNNCell, "relu": relu_cell}


class Recurrent(nn.Module):
    """A cell over time whose states have three consumers each; the loss is far from unit scale."""

    def __init__(
        self, kind: str, width: int, *, bias: bool = True, recompute: bool = False
    ) -> None:
        super().__init__()
        self.before = nn.Linear(width, width)
        self.cell = KINDS[kind](width, width, bias=bias)
        self.after = nn.Linear(width, width)
        self.recompute = recompute

    def step(self, x: Tensor, state):
        return self.cell(x, state)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x) * 20
        step = partial(checkpoint, self.step, use_reentrant=False) if self.recompute else self.step
        state, outputs = None, []
        for now in x.unbind(1):
            state = step(now, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.after(torch.stack(outputs, 1) + x).square().mean() * 1e-3


def draw(width: int, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, LENGTH, width, generator=torch.Generator().manual_seed(width))


OPS = {
    "gru": "gru_cell",
    "lstm": "lstm_cell",
    "tanh": "rnn_tanh_cell",
    "relu": "rnn_relu_cell",
}


# Torch's vectorized loops treat 16 numbers at once and the rest of a row one by one.
@pytest.mark.parametrize("width", [5, slow(16), 24, slow(40)])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bit_identical(kind, width) -> None:
    model = assert_trains_as_plain(lambda: Recurrent(kind, width), (draw(width),))
    assert_written_out(model, OPS[kind])


@pytest.mark.parametrize("settings", [{"bias": False}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("kind", all_but(KINDS, "lstm".__eq__))
def test_training_is_bit_identical_with(kind, settings) -> None:
    model = assert_trains_as_plain(lambda: Recurrent(kind, 8, **settings), (draw(8),))
    assert_written_out(model, OPS[kind])


@pytest.mark.parametrize("kind", all_but(KINDS, ("lstm", "tanh").__contains__))
def test_the_batch_may_change(kind) -> None:
    batches = (draw(8),), (draw(8, 5),), (draw(8, 6),)
    model = assert_trains_as_plain(lambda: Recurrent(kind, 8), *batches)
    assert_written_out(model, OPS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_cell_has_a_unit(kind) -> None:
    """All that has a scale: the first state is zero, and the last has no gradient from a next."""
    torch.manual_seed(0)
    model = unit_scale(Recurrent(kind, 32), "fp32-units", inner="eager")
    model(draw(32)).backward()
    reasons = {row.reason for row in rows(model)}
    assert reasons <= {None, "value is zero", "gradient is zero", "input of the graph"}
    inside = [row for row in rows(model) if row.name.startswith("cell.") and row.reason is None]
    assert len(inside) > 3 * LENGTH
    for row in inside:
        assert 0.5**0.5 <= row.rms / row.s <= 2**0.5


@pytest.mark.parametrize(
    ("kind", "inner"),
    [
        *((kind, "eager") for kind in KINDS),
        *(pytest.param(kind, "inductor", marks=pytest.mark.slow) for kind in KINDS),
    ],
)
@pytest.mark.filterwarnings("ignore:.*keeps every product of this call")
def test_products_of_a_cell_are_rounded(kind, inner) -> None:
    """To the recipe's format: coarser ones are further from FP32; a skipped cell is exact."""

    def loss(recipe: str, **options) -> Tensor:
        torch.manual_seed(0)
        model = apply_recipe(Recurrent(kind, 8), recipe, inner=inner, **options)
        return model(draw(8)).detach()

    exact = loss("fp32")
    assert loss("fp8-none", skip=["before", "after", "cell"]) == exact
    only_cell = {"skip": ["before", "after"]}
    fp16, fp8 = (abs(loss(name, **only_cell) - exact) for name in ("fp16-none", "fp8-none"))
    assert 0 < fp16 < fp8 < 0.2 * abs(exact)


def test_under_autocast_a_cell_stays_one_op() -> None:
    """Autocast casts what goes into a cell, not into each op of it."""

    class Autocast(Recurrent):
        def step(self, x, state):
            with torch.autocast("cpu", torch.bfloat16):
                return super().step(x, state)

    model = assert_trains_as_plain(lambda: Autocast("tanh", 8), (draw(8),))
    assert OPS["tanh"] in ops(model)
