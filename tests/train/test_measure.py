"""What the first step measures: bytes that autograd holds, and shares of tensors in range."""

import pytest
import torch
from torch import nn

from unitscale.record.ranges import share_in_range
from unitscale.train.measure import rms, saved_for_backward


def test_saved_bytes_are_those_of_the_activations() -> None:
    model = nn.Linear(8, 16)
    x = torch.randn(4, 8, requires_grad=True)
    with saved_for_backward(model) as saved:
        model(x).exp()
    # The linear layer saves its input (and its weight, a parameter), exp its output.
    assert saved.bytes == 4 * (4 * 8 + 4 * 16)


def test_storage_saved_twice_counts_once() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    with saved_for_backward(nn.Identity()) as saved:
        y = x * x.T.T * x[:2].sum()
    assert y.requires_grad
    # x and its views share 128 bytes; the product of the first two factors and the sum are new.
    assert saved.bytes == 128 + 128 + 4


def test_memory_of_a_dropped_tensor_is_not_counted_as_another() -> None:
    x = torch.randn(1000, requires_grad=True)
    with saved_for_backward(nn.Identity()) as saved:
        for _ in range(3):
            x.exp()  # freed at once, so that the next result would get its address
    assert saved.bytes == 3 * 4000


def test_watching_changes_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
    x = torch.randn(4, 8)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with saved_for_backward(model):
        loss = model(x).sum()
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([0.5, 2.0, 0.49, 2.01], 0.5),
        ([1.0, None, 0.0], 1.0),
        ([1.0, float("inf"), float("nan")], 1 / 3),
        ([None, 0.0], None),
        ([], None),
    ],
)
def test_share_in_range_counts_tensors_with_a_scale(
    values: list[float | None], share: float | None
) -> None:
    assert share_in_range(values) == share


def test_rms_is_the_root_of_the_mean_square() -> None:
    assert rms(torch.tensor([3.0, -4.0])) == pytest.approx(12.5**0.5)
