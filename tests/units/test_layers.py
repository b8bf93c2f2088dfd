"""Layers of torch.nn that write, route, or have gradients of a kind of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from units.training import CountingInner, assert_trains_as_plain, named
from unitscale.units import capturing, rows, unit_scale
from unitscale.units.forward import session_of

# 2026-11-24: torch 2.13's Dynamo reads `.grad` of what crosses a graph break, and makes an instance
# of a custom autograd.Function.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


class Around(nn.Module):
    """Two linear layers around what a subclass puts between; the loss is far from unit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x) * 20)).square().mean() * 1e-3


def batch() -> tuple[Tensor]:
    return (torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)),)


class SparseTable(Around):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8, sparse=True)

    def between(self, x: Tensor) -> Tensor:
        return x + self.table((x > 0).sum(-1).clamp(max=4))


class RenormalizedTable(SparseTable):
    """Each look-up first shortens the rows in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8, max_norm=1.0)


class SpectralNorm(Around):
    """A weight that is computed, with a power iteration in place on buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(self.first)

    def between(self, x: Tensor) -> Tensor:
        return x


class OrthogonalMap(Around):
    """A matrix exponential: its backward takes the exponential of a matrix with the gradient in it,
    and as many squarings as that is large."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.orthogonal(self.first, orthogonal_map="matrix_exp")

    def between(self, x: Tensor) -> Tensor:
        return x.sin() * 1e4


class FirstOnly(torch.autograd.Function):
    """A backward written by hand that has no gradient for its second input."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * 2, None


class NoGradient(Around):
    """Parameters behind the second input get none, and not zeros: an optimizer tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return FirstOnly.apply(x, self.third(x).sin())


class MovingAverage(Around):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("last", torch.zeros(8))

    def between(self, x: Tensor) -> Tensor:
        mean = x.detach().mean((0, 1))
        self.average.mul_(0.9).add_(mean, alpha=0.1)
        self.last = mean * 2
        return x - self.average - self.last


class WrittenParameter(Around):
    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.bias.mul_(0.99)
        return x


class Experts(Around):
    """Rows routed by value: graph breaks, and sums into a tensor in place."""

    def between(self, x: Tensor) -> Tensor:
        flat, output = x.reshape(-1, 8), torch.zeros(12, 8)
        chosen = flat.sum(-1) > 0
        for i, expert in enumerate((self.first, self.second)):
            rows = torch.where(chosen == bool(i))[0]
            output.index_add_(0, rows, expert(flat[rows]))
        return output.view_as(x)


class Convolutions(Around):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(
            nn.Conv1d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(2),
            nn.ConvTranspose1d(6, 3, 2, 2),
            nn.Dropout1d(0.2),
            nn.PReLU(),
            nn.Upsample(scale_factor=2),
            nn.AdaptiveMaxPool1d(8),
            nn.Hardtanh(inplace=True),
        )

    def between(self, x: Tensor) -> Tensor:
        return self.stack(x)


class Norms(Around):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(
            nn.GroupNorm(1, 3),
            nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
            nn.RMSNorm(8),
        )

    def between(self, x: Tensor) -> Tensor:
        return self.stack(x)


class Losses(Around):
    def between(self, x: Tensor) -> Tensor:
        target = torch.arange(12) % 8
        entropy = F.cross_entropy(x.flatten(0, 1), target, label_smoothing=0.1)
        huber = F.huber_loss(x, x.detach() * 2)
        divergence = F.kl_div(F.log_softmax(x, -1), F.softmax(x.detach(), -1), reduction="sum")
        return x + entropy + huber + divergence


class SumOfRepeats(Around):
    """A sum over memory that repeats goes through its terms in an order of its own."""

    def between(self, x: Tensor) -> Tensor:
        return x + torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")[0].mean()


LAYERS = [
    SparseTable,
    RenormalizedTable,
    SpectralNorm,
    OrthogonalMap,
    NoGradient,
    MovingAverage,
    WrittenParameter,
    Experts,
    Convolutions,
    Norms,
    Losses,
    SumOfRepeats,
]


@pytest.mark.parametrize("make", LAYERS)
def test_training_is_bit_identical_with(make):
    assert_trains_as_plain(make, batch())


def test_sparse_gradient_is_measured_as_the_dense_one():
    class DenseTable(SparseTable):
        def __init__(self) -> None:
            super().__init__()
            self.table.sparse = False

    found = []
    for make in (SparseTable, DenseTable):
        found.append(named(assert_trains_as_plain(make, batch()))["table.weight"].grad_rms)
        torch._dynamo.reset()
    assert found[0] == pytest.approx(found[1])


def test_many_layers_that_break_the_graph_and_know_their_number(monkeypatch):
    """Dynamo compiles such a layer once for each, and would give up after eight of them."""
    monkeypatch.setattr(capturing, "LEAST_LIMIT", 1)

    class Layer(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index, self.linear = index, nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            torch._dynamo.graph_break()
            return x + y.tanh() / (1 + self.index)

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(index) for index in range(12))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x.square().mean() * 100

    model = assert_trains_as_plain(Deep, (torch.randn(4, 8),), plain=None)
    assert len({row.name for row in rows(model) if row.name.startswith("layers.11.")}) > 0


class Flagged(Around):
    """One compilation for each flag."""

    def forward(self, x: Tensor, flag: str) -> Tensor:
        return super().forward(x if flag == "0" else -x)

    def between(self, x: Tensor) -> Tensor:
        return x


def test_a_model_may_be_compiled_more_often_than_torch_does():
    inner = CountingInner()
    model = unit_scale(Flagged(), "fp32-units", inner=inner)
    flags = [str(i) for i in range(torch._dynamo.config.recompile_limit + 2)]
    for flag in flags:
        model(*batch(), flag).backward()
    assert inner.graphs == len(flags)
    assert len(session_of(model).executables) == 2  # the same tensors captured again replace


def test_a_model_that_compiles_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(capturing, "LEAST_LIMIT", 1)
    model = unit_scale(Flagged(), "fp32-units", inner="eager")
    refused = pytest.raises(RuntimeError, match=r"compiled Flagged 2 times .* without its recipe")
    with torch._dynamo.config.patch(recompile_limit=1):
        for flag in "01":
            model(*batch(), flag).backward()
        with refused:
            model(*batch(), "2")
