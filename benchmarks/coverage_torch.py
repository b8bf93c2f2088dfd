"""Layers of torch beside linear ones: recurrent, bilinear, attention, transposed, parametrized."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo_entry import BATCH, CLASSES, Batch, Entry, generator

WIDTH, LENGTH = 32, 16

Body = Callable[[nn.Module, Tensor], Tensor]


def vectors(text: Any, step: int) -> Batch:
    """Say which of ten directions a noisy sequence [BATCH, LENGTH, WIDTH] leans to."""
    source = generator(step)
    y = torch.randint(CLASSES, (BATCH,), generator=source)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=source)
    x[:, :, :CLASSES] += F.one_hot(y, CLASSES)[:, None]
    return {"x": x, "y": y}


def words(text: Any, step: int) -> Batch:
    """Ids [BATCH, LENGTH], of which the first is the class."""
    source = generator(step)
    ids = torch.randint(100, (BATCH, LENGTH), generator=source)
    return {"x": ids, "y": ids[:, 0] % CLASSES}


class Layers(nn.Module):
    """Named layers, and a function of them and the input that gives features [BATCH, WIDTH]."""

    def __init__(self, body: Body, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = body
        self.readout = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        return F.cross_entropy(self.readout(self.body(self, x)), y)


def entry(
    name: str, body: Body, layers: Callable[[], dict[str, nn.Module]], **others: Any
) -> Entry:
    """An entry of `Layers`."""

    def build() -> nn.Module:
        return Layers(body, **layers())

    return Entry(name=name, family="layer", build=build, **{"batch": vectors} | others)


def linear() -> nn.Linear:
    """A square linear layer."""
    return nn.Linear(WIDTH, WIDTH)


def recurrent(kind: type[nn.RNNBase]) -> Callable[[], dict[str, nn.Module]]:
    """A recurrent layer after a linear one."""
    return lambda: {"first": linear(), "rnn": kind(WIDTH, WIDTH, batch_first=True)}


def last_state(m: Any, x: Tensor) -> Tensor:
    """The last output of a recurrent layer."""
    out: Tensor = m.rnn(F.gelu(m.first(x)))[0][:, -1]
    return out


ALLOW = {"allow_rnn": True}
RECURRENT = [
    entry("nn.LSTM beside Linears", last_state, recurrent(nn.LSTM)),
    entry("nn.LSTM, allow_rnn", last_state, recurrent(nn.LSTM), dynamo=ALLOW),
    entry("nn.GRU beside Linears", last_state, recurrent(nn.GRU)),
    entry("nn.GRU, allow_rnn", last_state, recurrent(nn.GRU), dynamo=ALLOW),
    entry("nn.RNN beside Linears", last_state, recurrent(nn.RNN)),
]


def crossed(m: Any, x: Tensor) -> Tensor:
    """Attention of states to projections of other widths."""
    out: Tensor = m.attention(x, m.key(x), m.value(x), need_weights=False)[0].mean(1)
    return out


def transformed(m: Any, x: Tensor) -> Tensor:
    """An encoder and a decoder of the same sequence."""
    out: Tensor = m.model(x, x.flip(1)).mean(1)
    return out


def weighted_maps(m: Any, x: Tensor) -> Tensor:
    """Attention that also returns its weights."""
    out, weights = m.attention(x, x, x)
    result: Tensor = (out + weights @ x).mean(1)
    return result


ATTENTION = [
    entry(
        "nn.MultiheadAttention, kdim and vdim",
        crossed,
        lambda: {
            "key": nn.Linear(WIDTH, 24),
            "value": nn.Linear(WIDTH, 40),
            "attention": nn.MultiheadAttention(WIDTH, 4, kdim=24, vdim=40, batch_first=True),
        },
    ),
    entry(
        "nn.MultiheadAttention with weights",
        weighted_maps,
        lambda: {"attention": nn.MultiheadAttention(WIDTH, 4, batch_first=True, bias=False)},
    ),
    entry(
        "nn.Transformer",
        transformed,
        lambda: {"model": nn.Transformer(WIDTH, 4, 1, 1, 64, dropout=0.1, batch_first=True)},
    ),
]


def paired(m: Any, x: Tensor) -> Tensor:
    """A bilinear form of two halves of a sequence."""
    out: Tensor = m.bilinear(x[:, ::2], x[:, 1::2]).mean(1)
    return out


def raised(m: Any, x: Tensor) -> Tensor:
    """Down by a strided convolution and up by a transposed one."""
    out: Tensor = m.up(F.relu(m.down(x.mT))).mean(2)
    return out


def planes(m: Any, x: Tensor) -> Tensor:
    """The same in two dimensions."""
    out: Tensor = m.up(F.relu(m.down(x[:, None]))).flatten(1)[:, :WIDTH]
    return out


def volumes(m: Any, x: Tensor) -> Tensor:
    """A convolution in three dimensions, and back."""
    out: Tensor = m.up(m.down(x.view(BATCH, 1, 8, 8, 8))).flatten(1)[:, :WIDTH]
    return out


CONVOLUTION = [
    entry("nn.Bilinear", paired, lambda: {"bilinear": nn.Bilinear(WIDTH, WIDTH, WIDTH)}),
    entry(
        "nn.Conv1d, nn.ConvTranspose1d",
        raised,
        lambda: {
            "down": nn.Conv1d(WIDTH, 16, 4, 2, 1),
            "up": nn.ConvTranspose1d(16, WIDTH, 4, 2, 1),
        },
    ),
    entry(
        "nn.Conv2d, nn.ConvTranspose2d",
        planes,
        lambda: {"down": nn.Conv2d(1, 8, 4, 2, 1), "up": nn.ConvTranspose2d(8, 1, 4, 2, 1)},
    ),
    entry(
        "nn.Conv3d, nn.ConvTranspose3d",
        volumes,
        lambda: {"down": nn.Conv3d(1, 8, 2, 2), "up": nn.ConvTranspose3d(8, 1, 2, 2)},
    ),
    entry(
        "lazy layers",
        lambda m, x: m.second(F.relu(m.first(x))).mean(1),
        lambda: initialized(first=nn.LazyLinear(WIDTH), second=nn.LazyLinear(WIDTH)),
    ),
]


def initialized(**layers: Any) -> dict[str, nn.Module]:
    """Lazy layers after their first call."""
    for layer in layers.values():
        layer(torch.zeros(1, WIDTH))
    return layers


class AdaptiveLoss(nn.Module):
    """Classes in clusters, the rare ones in smaller spaces."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear()
        self.loss = nn.AdaptiveLogSoftmaxWithLoss(WIDTH, CLASSES, [3, 6])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        loss: Tensor = self.loss(self.first(x).mean(1), y).loss
        return loss


def bagged(m: Any, x: Tensor) -> Tensor:
    """The mean of embeddings, and a linear layer."""
    out: Tensor = m.first(m.bag(x))
    return out


def normalized(m: Any, x: Tensor) -> Tensor:
    """Two parametrized linear layers."""
    out: Tensor = m.second(F.gelu(m.first(x))).mean(1)
    return out


OTHERS = [
    entry(
        "nn.EmbeddingBag",
        bagged,
        lambda: {"bag": nn.EmbeddingBag(100, WIDTH, mode="mean"), "first": linear()},
        batch=words,
    ),
    Entry(name="nn.AdaptiveLogSoftmaxWithLoss", family="layer", build=AdaptiveLoss, batch=vectors),
    entry(
        "weight_norm by parametrization",
        normalized,
        lambda: {
            "first": parametrizations.weight_norm(linear()),
            "second": parametrizations.weight_norm(linear()),
        },
    ),
    entry(
        "weight_norm of torch.nn.utils",
        normalized,
        lambda: {"first": old_weight_norm(linear()), "second": linear()},
    ),
    entry(
        "spectral_norm by parametrization",
        normalized,
        lambda: {"first": parametrizations.spectral_norm(linear()), "second": linear()},
    ),
    entry(
        "orthogonal by parametrization",
        normalized,
        lambda: {"first": parametrizations.orthogonal(linear()), "second": linear()},
    ),
]


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """The hook-based weight norm, which torch deprecates and many checkpoints have."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


LAYERS = [*RECURRENT, *ATTENTION, *CONVOLUTION, *OTHERS]
