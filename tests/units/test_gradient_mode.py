"""A model that switches the recording of gradients itself."""

import pytest
import torch
from torch import Tensor, nn

from units.training import TwoLayers, named
from unitscale.units import unit_scale

# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Records(TwoLayers):
    """As a model that fits something in evaluation does: a gradient is taken under `no_grad`."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


class Both(TwoLayers):
    """The first result has a history in every mode; the second has the caller's."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = self.first(x).tanh()
        return y, self.second(y)


class Pauses(TwoLayers):
    """The first graph ends within `no_grad`."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        with torch.no_grad():
            z = y * 2
            torch._dynamo.graph_break()
            z = z + 1
        return self.second(y + z).square().mean()


class Detaches(TwoLayers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        with torch.no_grad():
            z = self.second(y)
        return y, z


def results(model: nn.Module, x: Tensor, *, grad: bool) -> list[Tensor]:
    """What the model returns; the caller's mode is as it was afterwards."""
    with torch.set_grad_enabled(grad):
        found = model(x)
        assert torch.is_grad_enabled() is grad
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("make", [Records, Both, Pauses, Detaches])
def test_what_has_a_history_in_the_plain_model_has_it_in_the_scaled_one(make, grad, inner):
    plain, scaled = make(), make()
    scaled.load_state_dict(plain.state_dict())
    unit_scale(scaled, "fp32-units", inner=inner)
    for step in range(3):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        gradients = []
        for model in (plain, scaled):
            model.zero_grad()
            found = results(model, x, grad=grad)
            for y in found:
                if y.requires_grad:
                    y.sum().backward(retain_graph=True)
            history = [y.requires_grad for y in found]
            gradients.append((history, [p.grad for p in model.parameters()]))
        (want_history, want), (got_history, got) = gradients
        assert got_history == want_history
        for a, b in zip(got, want, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_gradients_under_the_callers_no_grad_are_measured():
    """Their units are those of training: at phi = 1 a small gradient would be rounded to zero."""
    model = unit_scale(Records(), "fp8", inner="eager")
    with torch.no_grad():
        loss = model(torch.randn(6, 8))
    (loss * 2.0**-20).backward()
    assert named(model)["first.linear"].phi > 2.0**15
