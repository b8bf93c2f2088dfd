"""What the zoo keeps of one architecture, and the batches it is trained on.

A batch depends on (step, text) only, so every arm of a comparison sees the same ones. Steps below 0
are batches that no training step sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.data import Split, sample_windows

PAD, BOS, EOS, MASK = 256, 257, 258, 259
VOCABULARY = 260
"""Bytes, and four marks."""

BATCH, LENGTH = 8, 64
CLASSES = 10

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture of the zoo.

    Args:
        name: as in the table.
        family: the table's sections.
        build: a fresh model; called as `model(**batch)` it returns its loss, or an object with one.
        batch: the batch of a step.
        lr: AdamW's learning rate.
        dynamo: settings of torch._dynamo.config that the model needs to be captured.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    batch: Callable[[Split, int], Batch]
    lr: float = 1e-3
    dynamo: dict[str, Any] = field(default_factory=dict)


def transformers_model(kind: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    """A builder of `transformers.<kind>` from its config class: nothing is downloaded."""

    def build() -> nn.Module:
        import transformers

        model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        return model.train()

    return build


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The scalar loss of a model on a batch."""
    output = model(**batch)
    return output if isinstance(output, Tensor) else output.loss


def generator(step: int) -> torch.Generator:
    """The random source of a step's batch."""
    return torch.Generator().manual_seed(1_000_003 + step)


def windows(text: Split, step: int, length: int = LENGTH) -> Tensor:
    """Bytes as ids [BATCH, length]."""
    taken = sample_windows(text, seed=0, step=step % 2**32, batch_size=BATCH, length=length)
    return torch.from_numpy(taken.astype("int64"))


def causal(text: Split, step: int) -> Batch:
    """Predict each byte from those before it."""
    ids = windows(text, step)
    return {"input_ids": ids, "labels": ids}


def short(text: Split, step: int) -> Batch:
    """As `causal`, on half the length: for models that go byte by byte."""
    ids = windows(text, step, LENGTH // 2)
    return {"input_ids": ids, "labels": ids}


def masked(text: Split, step: int) -> Batch:
    """Predict a hidden 15 % of the bytes from the rest."""
    ids = windows(text, step)
    hidden = torch.rand(ids.shape, generator=generator(step)) < 0.15
    return {
        "input_ids": ids.masked_fill(hidden, MASK),
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(~hidden, -100),
    }


def detected(text: Split, step: int) -> Batch:
    """Say which 15 % of the bytes were replaced (ELECTRA's discriminator)."""
    ids, source = windows(text, step), generator(step)
    replaced = torch.rand(ids.shape, generator=source) < 0.15
    other = torch.randint(256, ids.shape, generator=source)
    labels = (replaced & (other != ids)).long()
    return {
        "input_ids": torch.where(replaced, other, ids),
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
    }


def continued(text: Split, step: int) -> Batch:
    """Write the second half of a window, given the first."""
    ids = windows(text, step)
    first, second = (half.contiguous() for half in ids.split(LENGTH // 2, dim=1))
    return {"input_ids": first, "attention_mask": torch.ones_like(first), "labels": second}


def gratings(step: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy striped images [BATCH, 3, size, size]; the class is the direction of the stripes."""
    source = generator(step)
    labels = torch.randint(CLASSES, (BATCH,), generator=source)
    angle = labels * (torch.pi / CLASSES)
    phase = torch.rand(BATCH, generator=source) * 2 * torch.pi
    grid = torch.linspace(-1, 1, size)
    across = angle.cos()[:, None, None] * grid[:, None] + angle.sin()[:, None, None] * grid
    stripes = torch.sin(9 * across + phase[:, None, None])
    noise = torch.randn(BATCH, 3, size, size, generator=source)
    return stripes[:, None] + 0.5 * noise, labels


def images(text: Split, step: int) -> Batch:
    """Classify images."""
    pixels, labels = gratings(step)
    return {"pixel_values": pixels, "labels": labels}


def noised(text: Split, step: int) -> Batch:
    """Tell the noise from the image, at a random level of noise (a diffusion model's task)."""
    pixels, _ = gratings(step)
    source = generator(~step)
    level = torch.rand(BATCH, generator=source)
    noise = torch.randn(pixels.shape, generator=source)
    mix = level[:, None, None, None]
    return {
        "pixels": mix.sqrt() * noise + (1 - mix).sqrt() * pixels,
        "level": level,
        "noise": noise,
    }


def captioned(text: Split, step: int) -> Batch:
    """Match images with captions that name their class."""
    pixels, labels = gratings(step)
    caption = torch.full((BATCH, 8), EOS)
    caption[:, 0], caption[:, 1:4] = BOS, torch.stack([labels, labels + 20, labels + 40], dim=1)
    return {"pixel_values": pixels, "input_ids": caption, "attention_mask": caption.ne(-1).long()}


def tones(text: Split, step: int) -> Batch:
    """Classify the pitch of a noisy sound [BATCH, 1600]."""
    source = generator(step)
    labels = torch.randint(CLASSES, (BATCH,), generator=source)
    time = torch.arange(1600) / 1600
    phase = torch.rand(BATCH, 1, generator=source) * 2 * torch.pi
    sound = torch.sin(2 * torch.pi * (20 + 15 * labels[:, None]) * time + phase)
    sound = sound + 0.3 * torch.randn(sound.shape, generator=source)
    return {"input_values": sound, "labels": labels}


def spectra(text: Split, step: int) -> Batch:
    """Write the bytes whose bits a spectrogram [BATCH, 16, 2 LENGTH] shows."""
    ids = windows(text, step, LENGTH // 2)
    bits = (ids[:, None, :] >> torch.arange(8)[:, None]) & 1
    bands = bits.float().repeat_interleave(2, dim=1).repeat_interleave(4, dim=2)
    noise = 0.3 * torch.randn(bands.shape, generator=generator(step))
    return {"input_features": bands + noise, "labels": ids}
