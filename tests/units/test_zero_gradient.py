"""A gradient that is zero but for rounding has no scale: a unit would only magnify the noise."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from units.training import named
from unitscale.units import measured, unit_scale
from unitscale.units.assign import is_rounding_error


class Attention(nn.Module):
    """Softmax does not see what all keys share, so the key's bias has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return y.square().mean()


def test_the_key_bias_of_attention_keeps_one() -> None:
    model = unit_scale(Attention(), "fp32-units", inner="eager")
    with measured(model):
        model(torch.randn(4, 16, 8)).backward()
    rows = named(model)
    assert 0 < rows["key.bias"].grad_rms < 1e-9
    assert rows["key.bias"].phi == 1
    assert min(rows[name].phi for name in ("key.weight", "query.bias", "value.bias")) > 1


@pytest.mark.parametrize(
    ("grad_rms", "largest", "expected"),
    [(1e-13, 1e-2, True), (1e-8, 1e-2, False), (0.0, 1.0, True), (None, 1.0, False)],
)
def test_rounding_error_is_relative_to_the_largest_gradient(grad_rms, largest, expected) -> None:
    assert is_rounding_error(grad_rms, largest) == expected
