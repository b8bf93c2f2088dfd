"""A forward that fails leaves what the plain model leaves: its error and its random state."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from units.training import TwoLayers, assert_same_trace, train
from unitscale.units import unit_scale
from unitscale.units.forward import session_of

pytestmark = [
    # 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Fails(TwoLayers):
    """Draws random numbers and counts its calls before it fails on one row."""

    calls = 0

    def hidden(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(self.first(x), 0.5)


class OfShapes(Fails):
    """Fails in an op, so while it is captured."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x)
        return self.second(y[:, :4] if len(x) == 1 else y).square().mean()


class Raises(Fails):
    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x)
        if len(x) == 1:
            raise ValueError("one row")
        return self.second(y).square().mean()


class Late(Fails):
    """Fails when its graph runs."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x)
        return self.second(y).square().mean() + y[torch.full((1,), 9 * (len(x) == 1))].sum()


class Loops(Fails):
    """Breaks the graph in a loop before it fails, so that its layers are captured alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(2):
            torch._dynamo.graph_break()
            y = self.hidden(y)
        return self.second(y[:, :4] if len(x) == 1 else y).square().mean()


def outcome(model: nn.Module, before: int) -> tuple[str, Tensor, int]:
    """The error of a call that fails after some that do not, the random state and the count."""
    torch.manual_seed(1)
    for _ in range(before):
        model(torch.ones(2, 8)).backward()
    with pytest.raises((RuntimeError, ValueError, IndexError)) as failed:
        model(torch.ones(1, 8))
    kind = next(k for k in (IndexError, ValueError, RuntimeError) if failed.errisinstance(k))
    return kind.__name__, torch.get_rng_state(), model.calls


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("make", [OfShapes, Raises, Late, Loops])
def test_a_failed_call_leaves_the_random_state_and_the_attributes_of_the_plain_model(make, before):
    plain, scaled = make(), make()
    scaled.load_state_dict(plain.state_dict())
    unit_scale(scaled, "fp32-units", inner="eager")
    want, got = outcome(plain, before), outcome(scaled, before)
    assert got[0] == want[0]
    assert torch.equal(got[1], want[1])
    if make is not Late:  # torch.compile writes attributes once a graph has run
        assert got[2] == want[2]
    assert_same_trace(train(scaled, [(torch.ones(2, 8),)]), train(plain, [(torch.ones(2, 8),)]))
    assert session_of(scaled).suspended is False


def test_the_error_is_that_of_the_plain_model():
    model = unit_scale(OfShapes(), "fp8", inner="eager")
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as failed:
        model(torch.ones(1, 8))
    assert failed.type is RuntimeError
    assert failed.value.__suppress_context__
    model(torch.ones(2, 8))
    assert us.coverage(model) == 1.0
