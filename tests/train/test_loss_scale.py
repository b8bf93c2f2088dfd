"""LossScale: torch's GradScaler, rule for rule."""

import pytest
import torch

from unitscale.train.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, LossScale


def parameter(*grad: float) -> torch.nn.Parameter:
    """A parameter with this gradient."""
    result = torch.nn.Parameter(torch.zeros(len(grad)))
    result.grad = torch.tensor(grad)
    return result


def test_no_loss_scale_leaves_gradients_as_they_are() -> None:
    p = parameter(1.0, float("inf"))
    assert LossScale.of(None).unscale_([p])
    assert p.grad.tolist() == [1.0, float("inf")]


def test_static_scale_divides_and_never_skips() -> None:
    scale, p = LossScale.of(2048.0), parameter(2048.0, float("nan"))
    assert scale.unscale_([p])
    assert p.grad[0] == 1.0
    scale.update(is_finite=True)
    assert scale == LossScale(scale=2048.0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_dynamic_scale_skips_a_gradient_that_is_no_number(bad: float) -> None:
    scale = LossScale.of("dynamic")
    assert not scale.unscale_([parameter(1.0), parameter(1.0, bad)])
    assert scale.unscale_([parameter(1.0)])


def test_parameter_without_gradient_is_passed_over() -> None:
    assert LossScale.of("dynamic").unscale_([torch.nn.Parameter(torch.zeros(1))])


def test_dynamic_scale_follows_torchs_grad_scaler() -> None:
    # Overflows at these steps; the long clean stretches reach the growth interval twice.
    overflows = {0, 1, 2, 700, GROWTH_INTERVAL + 900}
    p = parameter(1.0)
    optimizer = torch.optim.SGD([p], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=INITIAL_SCALE)
    ours = LossScale.of("dynamic")
    for step in range(3 * GROWTH_INTERVAL):
        grad = float("inf") if step in overflows else 1.0
        theirs.scale(torch.zeros(()))  # creates its state on the first step
        p.grad = torch.tensor([grad])
        theirs.step(optimizer)
        theirs.update()
        ours.update(is_finite=ours.unscale_([parameter(grad)]))
        assert (ours.scale, ours.clean_steps) == (theirs.get_scale(), theirs._get_growth_tracker())
    assert ours.scale == INITIAL_SCALE / 2**5 * 2**2


def test_dynamic_scale_stays_finite() -> None:
    largest = 2.0**127
    scale = LossScale(scale=largest, is_dynamic=True, clean_steps=GROWTH_INTERVAL - 1)
    scale.update(is_finite=True)
    assert scale == LossScale(scale=largest, is_dynamic=True, clean_steps=0)
