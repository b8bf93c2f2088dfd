"""Two forward passes before one backward pass: the first one's measurement is not lost."""

import pytest
import torch
from torch import Tensor, nn

from unitscale.units import unit_scale
from unitscale.units.forward import session_of


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).square().mean() * 1e-3


@pytest.mark.parametrize("keeps", [False, True])
def test_a_second_forward_pass_before_the_backward_pass_of_the_first_loses_nothing(keeps):
    """Its result is dropped, as where a metric is computed with gradients by mistake."""
    model = unit_scale(Net(), "fp8")
    session, measured, kept = session_of(model), [], []
    for x in torch.randn(4, 8, 16):
        loss = model(x)
        kept.append(model(x))
        if not keeps:
            kept.clear()
        loss.backward()
        measured.append(session.terms.measured)
    assert session.store.units["first.linear"].phi > 0
    assert measured[-1] is False  # the eighth call, of which none is due
