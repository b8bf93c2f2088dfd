"""What is at stake in a result: the change of the loss that a random error of it makes."""

import math

import pytest
import torch
from torch import nn

from unitscale.record import record

SAMPLES = 400


@pytest.mark.parametrize("shape", [(24, 16), (4, 6, 16)])
def test_it_is_the_change_of_the_loss_by_an_error_as_large_as_the_result(shape) -> None:
    """Measured on the output: `y + r * rms(y)` with random signs r, `SAMPLES` times.

    The standard deviation of a loss that is linear in y; of so many samples it is off by
    1 / sqrt(2 * SAMPLES), 3.5 %, and by five of them once in millions. The mean of |y g| over the
    elements is not the product of their RMS, but near it: y and g are drawn independently.
    """
    torch.manual_seed(0)
    layer, x, g = nn.Linear(16, 8, bias=False), torch.randn(shape), torch.randn(*shape[:-1], 8)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.layer(x) * g).sum()

    x.requires_grad_()
    with record(Model(), every=1, what_if=["mxfp4"]) as recorder:
        recorder.model(x).backward()
    (stakes,) = (row["stakes"] for row in recorder.rows if "what_if" in row)
    y = layer(x).detach()
    size = y.square().mean().sqrt()
    signs = torch.randint(0, 2, (SAMPLES, *y.shape)) * 2.0 - 1
    changes = (signs * size * g).flatten(1).sum(1)
    assert stakes["output"] == pytest.approx(changes.std().item(), rel=5 / math.sqrt(2 * SAMPLES))
    rms = {name: t.square().mean().sqrt().item() for name, t in (("x", x), ("gx", x.grad))}
    assert stakes["grad_input"] == pytest.approx(rms["x"] * rms["gx"] * math.sqrt(x.numel()), 1e-3)
    w = layer.weight
    want = (w.square().mean() * w.grad.square().mean()).sqrt().item() * math.sqrt(w.numel())
    assert stakes["grad_weight"] == pytest.approx(want, 1e-3)


def test_a_part_stands_for_the_whole_and_no_gradient_for_nothing() -> None:
    """300 features of 600 rows are compared in part; the stake is that of all of them."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(300, 300, bias=False)), torch.randn(600, 300)
    with record(model, every=1, what_if=["mxfp8"]) as recorder:
        recorder.model(x).square().mean().backward()
    (row,) = (row for row in recorder.rows if "what_if" in row)
    y = model(x)
    want = y.square().mean().sqrt() * (2 * y / y.numel()).square().mean().sqrt()
    assert row["sampled"] is not None
    assert row["stakes"]["output"] == pytest.approx((want * y.numel() ** 0.5).item(), rel=0.02)
    with torch.no_grad(), record(model, every=1, what_if=["mxfp8"]) as recorder:
        recorder.model(x)
    assert all("stakes" not in row for row in recorder.rows)
