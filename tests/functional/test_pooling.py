from typing import Any

import pytest
import torch
import torch.nn.functional as F

import unitscale.functional as U


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (2, {}),
        ((3, 2), {"stride": 1}),
        (3, {"stride": (2, 1), "padding": 1}),
        (2, {"ceil_mode": True}),
    ],
)
def test_windows_and_strides_may_differ_by_axis(kernel: Any, options: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    numel = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
    average = U.avg_pool2d(x, kernel, **options)
    torch.testing.assert_close(average, F.avg_pool2d(x, kernel, **options) * numel**0.5)
    ratio = U.max_pool2d(x, kernel, **options) / F.max_pool2d(x, kernel, **options)
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))


def test_maximum_keeps_its_mean() -> None:
    """The stated limit: 1.03 / 0.70 for 2x2."""
    y = U.max_pool2d(torch.randn(64, 16, 32, 32), 2)
    assert y.mean().item() == pytest.approx(1.029 / 0.7012, rel=0.01)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1)])
def test_overlapping_windows_are_unit_within_three_percent(kernel: int, stride: int) -> None:
    x = torch.randn(16, 16, 64, 64, requires_grad=True)
    y = U.max_pool2d(x, kernel, stride, padding=1, constraint=None)
    y.backward(torch.randn_like(y))
    assert y.std().item() == pytest.approx(1, rel=0.03)
    assert x.grad.square().mean().sqrt().item() == pytest.approx(1, rel=0.03)


def test_adaptive_pooling_takes_sizes_by_axis() -> None:
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    y = U.adaptive_avg_pool2d(x, (4, None))
    torch.testing.assert_close(y, F.adaptive_avg_pool2d(x, (4, None)) * 2**0.5)


@pytest.mark.parametrize("size", [5, 6, 7])
def test_adaptive_pooling_is_unit_where_windows_overlap(size: int) -> None:
    x = torch.randn(64, 64, 7, 13, requires_grad=True)
    y = U.adaptive_avg_pool2d(x, size, constraint=None)
    y.backward(torch.randn_like(y))
    # Windows of several sizes are pooled under one factor, which is good to 3 %.
    assert y.std().item() == pytest.approx(1, rel=0.03)
    assert x.grad.square().mean().sqrt().item() == pytest.approx(1, rel=0.06)


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"avg_pool1d: input has dtype torch\.int64"):
        U.avg_pool1d(torch.ones(1, 2, 8, dtype=torch.int64), 2)
