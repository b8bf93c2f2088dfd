"""Writes that nothing else sees become new tensors, with units; the others stay as they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from units.training import assert_trains_as_plain, named
from unitscale.graph.capture import MUTATED
from unitscale.units import unit_scale


class Between(nn.Module):
    """Two small layers with something in between; the loss is far from unit scale."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.first(x) * 20)
        return self.second(y.float()).square().mean() * 1e-3


def add_and_multiply(x):
    y = x.sin()
    y += x
    y *= 3
    return y


def divide_what_is_used_before(x):
    values, _ = torch.topk(x, 8, dim=-1)
    total = values.sum(-1, keepdim=True)
    values /= total
    return values


def flag(x):
    return F.relu(x + 1, inplace=True)


def flag_by_position(x):
    return F.dropout(x.sin(), 0.25, True, True)


def dropout_of_channels(x):
    """It returns its input, which is no sign that it did nothing."""
    return F.dropout1d(x.sin()[None] + 1, 0.5, True, True)[0]


def method(x):
    return (x.sin() + x).mul_(3).masked_fill_(x > 20, 3.0).relu_()


def used_under_its_old_name(x):
    y = x.sin()
    y.add_(x)
    return y * y


def view_of_what_is_not_used(x):
    y = x.cos().T
    y -= 1
    return y.T


def pooled(x):
    y = F.adaptive_avg_pool1d(x[None], 4).flatten(1)
    return y.repeat(1, 2)[:, :8] + x


NODES = torch.tensor([0, 2, 2, 1])


def messages(x):
    """How a graph network sums what arrives at a node."""
    summed = x.new_zeros(3, 8).scatter_add_(0, NODES[:, None].expand(4, 8), x.sin())
    largest = x.new_zeros(3, 8).scatter_reduce_(0, NODES[:, None].expand(4, 8), x, "amax")
    return summed + largest


def rows_of_a_table(x):
    table = torch.zeros(4, 8).index_add_(0, NODES, x).index_copy_(0, NODES[:1], x[:1] * 2)
    return table.index_put_((NODES,), x, accumulate=True).index_fill_(1, NODES[:2], 0.5)


def scattered(x):
    table = torch.ones(4, 8).scatter_(0, NODES[None, :].expand(1, 4), x[:1, :4])
    return table.masked_scatter_(x > 0, x)


NEW = [
    messages,
    rows_of_a_table,
    scattered,
    add_and_multiply,
    divide_what_is_used_before,
    flag,
    flag_by_position,
    dropout_of_channels,
    method,
    used_under_its_old_name,
    view_of_what_is_not_used,
    pooled,
]


def written_rows(model: nn.Module) -> list[str]:
    return [name for name, row in named(model).items() if row.reason == MUTATED]


@pytest.mark.parametrize("between", NEW)
def test_a_write_that_nobody_sees_becomes_a_new_tensor(between) -> None:
    model = assert_trains_as_plain(lambda: Between(between), (torch.randn(4, 8),), least_units=4)
    assert written_rows(model) == []


def base_of_a_view(x):
    y = x.sin()
    y[:, 1:] += 1
    return y


def assigned_before(x):
    y = x.sin()
    y[:, :4] = 0
    y.mul_(2)
    return y


def assigned_after(x):
    y = x.sin()
    y *= 2
    y[:, :4] = 0
    return y.relu_()


def assigned_by_a_mask(x):
    y = x.sin()
    y[x > 0] = 0
    y += 1
    return y


def assigned_by_a_row(x):
    y = x.sin()
    y.add_(1)
    y[0] = x[1]
    y.mul_(3)
    return y


def view_of_a_base(x):
    y = x.sin()
    z = y[:, :4]
    y *= 2
    return torch.cat([z, z], 1) + y


def sliced_view(x):
    y = x.cos()[:, 1:]
    y -= 1
    return F.pad(y, (1, 0))


def alias(x):
    y = x.sin()
    z = y.detach()
    z *= 2
    return y


def narrower_than_what_is_added(x):
    y = x.bfloat16()
    y += x
    return y


def memory_to_be_filled(x):
    y = x.new_empty(x.shape)
    y[:, :4].copy_(x[:, 4:])
    y[:, 4:].copy_(x[:, :4])
    return y


def out_of_the_history(x):
    y = x.sin()
    with torch.no_grad():
        y *= 2
    return y


OLD = [
    out_of_the_history,
    base_of_a_view,
    view_of_a_base,
    sliced_view,
    alias,
    narrower_than_what_is_added,
    memory_to_be_filled,
    assigned_before,
    assigned_after,
    assigned_by_a_mask,
    assigned_by_a_row,
]


@pytest.mark.parametrize("between", OLD)
def test_a_write_that_is_seen_stays(between) -> None:
    model = assert_trains_as_plain(lambda: Between(between), (torch.randn(4, 8),), least_units=2)
    assert written_rows(model)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.layer(x + self.steps).square().mean()


def test_a_write_to_a_buffer_is_done() -> None:
    model = assert_trains_as_plain(Counting, (torch.zeros(4, 8),))
    assert model.steps == 3


def test_a_write_to_an_input_is_done() -> None:
    class Writing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return super().forward(x * 2).square().mean()

    model, x = unit_scale(Writing(8, 8), "fp32-units", inner="eager", remeasure="once"), zeros()
    for step in range(3):
        model(x).backward()
        assert torch.equal(x, zeros() + step + 1)


def zeros() -> Tensor:
    return torch.zeros(4, 8)
