"""Parts of models that a rewrite could get wrong: ties, tuples, views, writes, integers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from units.training import assert_trains_as_plain, named
from unitscale.units import rows


class Structure(nn.Module):
    """Two small layers with something in between; the loss is far from unit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x) * 20)).square().mean() * 1e-3


def batch(rows: int = 4) -> tuple[Tensor]:
    return (torch.randn(rows, 3, 8, generator=torch.Generator().manual_seed(rows)),)


BETWEEN = {}


def between(function):
    """Adds a case: what a model does between its two layers."""
    BETWEEN[function.__name__] = function
    return function


@between
def nothing(model, x):
    return x


@between
def tied_weight(model, x):
    return model.first(x) @ model.first.weight


@between
def split_with_an_unused_part(model, x):
    a, _, c, d = x.split(2, dim=-1)
    return torch.cat([a * d, c, a, d], dim=-1)


@between
def unbind_and_stack(model, x):
    return torch.stack([2 * part for part in x.unbind(1)], dim=1)


@between
def top_k(model, x):
    values, index = x.topk(4, dim=-1)
    return torch.cat([values, values * index], dim=-1)


@between
def maximum_over_an_axis(model, x):
    values, _ = x.max(dim=1, keepdim=True)
    return x - values


@between
def sort(model, x):
    return torch.sort(x, dim=-1).values * x


@between
def views_and_slices(model, x):
    return x.view(-1, 2, 4).transpose(1, 2).reshape(x.shape)[..., [1, 0, 3, 2, 5, 4, 7, 6]]


@between
def expand(model, x):
    return x[:, :1].expand_as(x) + x.mean(1, keepdim=True).expand(-1, 3, -1)


@between
def three_consumers(model, x):
    return x.sin() * x.cos() + x.tanh() - x


@between
def add_in_place(model, x):
    y = x.exp().log()
    y.add_(x)
    y += 1.0
    return y


@between
def relu_in_place(model, x):
    return (x * 2).relu_()


@between
def relu_in_place_by_flag(model, x):
    return F.relu(x, inplace=True)


@between
def masked_fill_in_place(model, x):
    y = x + 1
    return y.masked_fill_(y > 2, 0.5)


@between
def index_assignment(model, x):
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    y[0] = 3.0
    return y


@between
def view_written_later(model, x):
    y = x + 1
    first = y[:, 0]
    before = y * 2
    first.mul_(3)
    return before + y


@between
def base_written_later(model, x):
    y = x + 1
    row = y[:, :1]
    y.div_(2)
    return row * y


@between
def copy_in_place(model, x):
    y = torch.empty_like(x)
    y.copy_(x)
    return y * x


@between
def scatter_add_in_place(model, x):
    index = torch.arange(3).flip(0).view(1, 3, 1).expand_as(x)
    return torch.zeros_like(x).scatter_add_(1, index, x)


@between
def out_argument(model, x):
    with torch.no_grad():
        y = torch.empty_like(x)
        torch.add(x, 1.0, out=y)
    return x * y


@between
def integers_and_booleans(model, x):
    count = torch.arange(8)
    return x + count + (x > 0) - count * (x < 1) + torch.where(x > 0, count, x)


@between
def integer_in_cat(model, x):
    return torch.cat([x[..., :4], torch.ones(4, 3, 4, dtype=torch.int64)], dim=-1)


@between
def comparison_and_count(model, x):
    return x * (x > x.mean()).sum() / x.numel()


@between
def rounding_and_floor(model, x):
    return x - x.floor() + torch.div(x, 3.0, rounding_mode="trunc") + x.round().detach()


@between
def embedding_bag_of_signs(model, x):
    return x + F.embedding((x > 0).long().sum(-1).clamp(max=7), model.first.weight)


@between
def detach_and_no_grad(model, x):
    with torch.no_grad():
        scale = x.abs().amax()
    return x / scale + x.detach()


@between
def zero_tensor(model, x):
    return x + (x - x) * 5


@between
def unused_value(model, x):
    x.exp().sum()
    return x


@between
def complex_numbers(model, x):
    z = torch.view_as_complex(x.view(*x.shape[:-1], 4, 2))
    return torch.view_as_real(z * torch.polar(torch.ones(4), torch.arange(4.0))).flatten(-2)


@between
def fourier(model, x):
    return torch.fft.fft(x, dim=-1).real


@between
def bit_pattern(model, x):
    bits = x.detach().view(torch.int32).view(torch.float32)
    return x + bits + x.detach().bfloat16().view(torch.float16).float().nan_to_num(0, 0, 0)


@between
def another_precision_inside(model, x):
    return x.bfloat16().mul(2).float() + x.double().sin().to(x.dtype)


@between
def keyword_arguments(model, x):
    y = torch.add(x, other=x.sin())
    z = torch.matmul(y, other=model.first.weight)
    return torch.cat(tensors=[z[..., :4], y[..., 4:]], dim=-1)


@between
def same_tensor_twice(model, x):
    flat = x.reshape(-1, 8)
    added = torch.addmm(flat, flat, model.first.weight).view_as(x)
    return x * x + x / x + torch.where(x > 0, x, x) + x + added


@pytest.mark.parametrize("name", BETWEEN)
def test_training_is_bit_identical_with(name):
    make = type("Model", (Structure,), {"between": BETWEEN[name]})
    assert_trains_as_plain(make, batch())


IDLE = {
    "dropout in evaluation": lambda x: F.dropout(x, 0.1, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.1, training=False),
    "plus": lambda x: +x,
    "to a device": lambda x: x.cpu(),
    "to a dtype": lambda x: x.type(torch.float32),
    "flatten": lambda x: torch.flatten(x, 1),
    "real part": lambda x: torch.real(x),
    "attribute": lambda x: x.real,
    "at least 2-D": lambda x: torch.atleast_2d(x),
    "sum to its size": lambda x: x.sum_to_size(x.shape),
}


@pytest.mark.parametrize("name", IDLE)
def test_a_call_that_returns_its_input_is_no_tensor_of_its_own(name):
    """With several consumers on either side the order of the sums of gradients would differ."""
    around = {"parameter", "input", "linear", "mul", "add", "sin", "cos", "tanh", "exp", "mean"}

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) * 30
            d = IDLE[name](h)
            waves = self.a(d).sin() * self.b(h).cos() + self.c(d).tanh()
            return (waves + self.b(d) * 1e-2 + h.exp() * 1e-9).mean()

    model = assert_trains_as_plain(Idle, (torch.randn(8, 16),))
    assert {row.op for row in rows(model)} == around


@pytest.mark.parametrize("kept", [24, 64])
def test_memory_read_by_as_strided_stays_as_it_is(kept):
    """Its strides are constants of the plain layout: 24 of 96 columns, 96 apart."""

    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 96)

        def forward(self, x: Tensor) -> Tensor:
            hidden = (self.first(x) * 20)[:, :kept]
            rows, columns = hidden.stride()
            windows = hidden.as_strided((len(x), 2, 16), (rows, columns * 8, columns))
            return windows.sum(1).square().mean()

    model = assert_trains_as_plain(Strided, (torch.randn(8, 16),))
    assert named(model)["getitem"].reason == "its memory is read by as_strided"


def test_tensors_written_in_place_and_their_views_keep_one():
    make = type("Model", (Structure,), {"between": view_written_later})
    found = named(assert_trains_as_plain(make, batch()))
    reasons = {name: row.reason for name, row in found.items()}
    assert reasons["add"] == reasons["getitem"] == reasons["mul_"] == "written to in place"
    assert (found["add"].s, found["add"].phi) == (1.0, 1.0)
    assert reasons["mul"] is None
    assert found["mul"].s > 1.0


def test_tied_parameter_has_one_row_and_its_true_gradient():
    make = type("Model", (Structure,), {"between": tied_weight})
    found = named(assert_trains_as_plain(make, batch()))
    assert [name for name in found if "first.weight" in name] == ["first.weight"]
    assert found["first.weight"].reason == "input of the graph"


def gram_matrix(model: nn.Module, x: Tensor) -> Tensor:
    return torch.einsum("bti,bsi->bts", x, x) @ x


def normalized(model: nn.Module, x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) + x


@pytest.mark.parametrize("function", [gram_matrix, normalized])
def test_one_op_that_reads_a_tensor_twice_changes_no_bit(function):
    """Autograd sums the parts of a gradient one by one, in an order that no graph shows."""
    make = type("Model", (Structure,), {"between": function})
    assert_trains_as_plain(make, batch())
