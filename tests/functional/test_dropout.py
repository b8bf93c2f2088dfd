import pytest
import torch

import unitscale.functional as U


def test_survivors_are_multiplied_by_the_root() -> None:
    y = U.dropout(torch.ones(1000), 0.75)
    assert sorted(y.unique().tolist()) == [0.0, 2.0]


def test_evaluation_shows_the_mean_of_training() -> None:
    x = torch.randn(64)
    mean = torch.stack([U.dropout(x, 0.3) for _ in range(4000)]).mean(0)
    # 4000 draws of a survivor of 1.2 |x|: five standard errors.
    assert (mean - U.dropout(x, 0.3, training=False)).abs().max() < 5 * 0.55 * 3 / 4000**0.5


def test_whole_channels_are_dropped_together() -> None:
    for op, shape in (("dropout1d", (8, 16, 5)), ("dropout2d", (8, 16, 5, 2))):
        y = getattr(U, op)(torch.ones(shape), 0.5).flatten(2)
        assert torch.equal(y, y[..., :1].expand_as(y))


def test_the_ends_of_the_range() -> None:
    x = torch.randn(16)
    assert torch.equal(U.dropout(x, 0.0), x)
    assert U.dropout(x, 1.0).abs().sum() == 0
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"{p}.*expected a probability between 0 and 1"):
            U.dropout(x, p)
    with pytest.raises(TypeError, match=r"dropout2d: input has dtype torch\.int64"):
        U.dropout2d(torch.ones(2, 3, 4, 4, dtype=torch.int64))
