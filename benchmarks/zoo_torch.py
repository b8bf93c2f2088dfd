"""Models of the zoo in torch alone: recurrent, convolution, nn.TransformerEncoder, U-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_entry import LENGTH, VOCABULARY, Entry, causal, noised, short

WIDTH = 64


def next_byte_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each position's prediction of the next byte."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class RecurrentLM(nn.Module):
    """A byte model over one of torch's recurrent layers."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.recurrent = layer(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.readout = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        hidden, _ = self.recurrent(self.embedding(input_ids))
        return next_byte_loss(self.readout(hidden), labels)


class CellLM(nn.Module):
    """A byte model that steps through time itself, with a GRU's cell and then an LSTM's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.first, self.second = nn.GRUCell(WIDTH, WIDTH), nn.LSTMCell(WIDTH, WIDTH)
        self.readout = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        first, second, hidden = None, None, []
        for x in self.embedding(input_ids).unbind(1):
            first = self.first(x, first)
            second = self.second(first, second)
            hidden.append(second[0])
        return next_byte_loss(self.readout(torch.stack(hidden, 1)), labels)


class EncoderLM(nn.Module):
    """A byte model over nn.TransformerEncoder, with the mask of a causal one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.readout = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        length = input_ids.shape[1]
        x = self.embedding(input_ids) + self.position.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return next_byte_loss(self.readout(self.layers(x, mask, is_causal=True)), labels)


class ConvolutionLM(nn.Module):
    """A byte model of causal gated convolutions (Dauphin et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, 2 * WIDTH, 5) for _ in range(3))
        self.readout = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        x = self.embedding(input_ids).mT
        for layer in self.layers:
            x = x + F.glu(layer(F.pad(x, (4, 0))), dim=1)
        return next_byte_loss(self.readout(x.mT), labels)


class Block(nn.Module):
    """A residual block of two convolutions that is told the level of noise."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(4, channels), nn.GroupNorm(4, width)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.level = nn.Linear(32, width)
        self.skip = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """`x` [N, channels, H, W] and the embedded level [N, 32] to [N, width, H, W]."""
        y = self.first(F.silu(self.first_norm(x))) + self.level(level)[:, :, None, None]
        return self.skip(x) + self.second(F.silu(self.second_norm(y)))


class UNet(nn.Module):
    """A small denoising U-Net (as in Ho et al. 2020, without attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 16, 3, padding=1)
        self.down, self.bottom, self.up = Block(16, 16), Block(16, 32), Block(48, 16)
        self.leave = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, pixels: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """The loss."""
        frequencies = 2.0 ** torch.arange(16)
        angles = level[:, None] * frequencies
        embedded = torch.cat([angles.sin(), angles.cos()], dim=1)
        high = self.down(self.enter(pixels), embedded)
        low = self.bottom(F.avg_pool2d(high, 2), embedded)
        raised = F.interpolate(low, scale_factor=2.0, mode="nearest")
        x = self.up(torch.cat([raised, high], dim=1), embedded)
        return F.mse_loss(self.leave(F.silu(x)), noise)


CAPTURE_RECURRENT = {"allow_rnn": True}

TORCH = [
    Entry(name="nn.TransformerEncoder", family="torch", build=EncoderLM, batch=causal),
    Entry(
        name="nn.LSTM",
        family="torch",
        build=lambda: RecurrentLM(nn.LSTM),
        batch=causal,
        dynamo=CAPTURE_RECURRENT,
    ),
    Entry(
        name="nn.GRU",
        family="torch",
        build=lambda: RecurrentLM(nn.GRU),
        batch=causal,
        dynamo=CAPTURE_RECURRENT,
    ),
    Entry(name="nn.GRUCell, nn.LSTMCell", family="torch", build=CellLM, batch=short),
    Entry(name="gated convolutions", family="torch", build=ConvolutionLM, batch=causal),
    Entry(name="denoising U-Net", family="torch", build=UNet, batch=noised),
]
