"""A Llama trained in BF16, in FP8 at units, and in FP8 by torchao where it is installed.

The same parameters, batches and optimizer for all: the model of `unitscale train --model llama
--dtype bf16` on the source text of Python's standard library.
`gpu_table.py` runs it, and prints its rows in one table with the others.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median, quantiles

import torch
from paired import Row
from torch import nn

from unitscale import unit_scale
from unitscale.data import open_corpus, sample_windows
from unitscale.train import TrainConfig
from unitscale.train.device import wait
from unitscale.train.divergence import final_loss
from unitscale.train.initial import initial_state
from unitscale.train.loop import to_inputs

CHUNK = 10
"""Steps of one timing; the device is waited for only at its end."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A Llama, its batch, and how long it is trained.

    Args:
        inner: the compiler of all cases.
        warm: steps that are not timed, in which the compilers work.
    """

    width: int
    depth: int
    heads: int
    batch_size: int
    length: int
    steps: int
    warm: int
    inner: str

    def config(self, device: str) -> TrainConfig:
        """As the lab has it."""
        return TrainConfig(
            recipe="fp32",  # of the model as it is made: the cases bring their own
            existing="llama",
            model={"width": self.width, "depth": self.depth, "heads": self.heads},
            batch_size=self.batch_size,
            sequence_length=self.length,
            steps=self.steps,
            lr=2.0**-11,
            device=device,
            dtype="bf16",
        )


# 13 * 13 * 768^2 + 2 * 256 * 768 = 100.1 million parameters.
FULL = Size(
    width=768, depth=13, heads=12, batch_size=16, length=512, steps=200, warm=20, inner="inductor"
)
QUICK = Size(width=32, depth=1, heads=2, batch_size=2, length=16, steps=6, warm=2, inner="eager")

Way = Callable[[nn.Module, Size], nn.Module]


def plain(model: nn.Module, size: Size) -> nn.Module:
    """The model compiled as it is."""
    model.compile(backend=size.inner)
    return model


def at_units(model: nn.Module, size: Size) -> nn.Module:
    """FP8 at units, measured as by default; the fastest executor that the device has."""
    return unit_scale(model, "fp8", inner=size.inner)


def by_torchao(model: nn.Module, size: Size) -> nn.Module:
    """torchao's dynamic scaling, one scale a tensor, compiled. A CPU emulates its products."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    emulate = next(model.parameters()).device.type == "cpu"
    return plain(
        convert_to_float8_training(model, config=Float8LinearConfig(emulate=emulate)), size
    )


WAYS: dict[str, Way] = {"bf16": plain, "fp8": at_units, "torchao": by_torchao}
"""The first is the one that the others are compared with."""


def parameters_text(model: nn.Module) -> str:
    """How many parameters, in millions."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"


def trained(way: Way, size: Size, device: str) -> tuple[list[float], list[float], str]:
    """Losses of all steps, seconds a step of every chunk after the warm ones, and a note."""
    torch.compiler.reset()
    config, corpus = size.config(device), open_corpus()
    state, place = initial_state(config), torch.device(device)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    model = way(state.model, size)
    losses: list[torch.Tensor] = []
    seconds: list[float] = []
    begin, counted = time.perf_counter(), 0
    for step in range(config.steps):
        windows = sample_windows(
            corpus.train,
            seed=config.seed,
            step=step,
            batch_size=size.batch_size,
            length=size.length + 1,
        )
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        loss = model(*to_inputs(windows, place))
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        losses.append(loss.detach())
        counted += 1
        if step + 1 == size.warm or counted == CHUNK or step + 1 == config.steps:
            wait(place)
            now = time.perf_counter()
            if step >= size.warm:
                seconds.append((now - begin) / counted)
            begin, counted = now, 0
    peak = "not counted on a CPU"
    if place.type == "cuda":
        peak = f"{torch.cuda.max_memory_allocated(place) / 2**30:.1f} GiB"
    found = [float(loss) for loss in losses]
    tokens = size.batch_size * size.length / median(seconds)
    note = (
        f"{parameters_text(model)} parameters, loss {found[0]:.3f} to {final_loss(found):.3f} in "
        f"{config.steps} steps, {tokens:,.0f} tokens/s, peak memory {peak}"
    )
    return found, seconds, note


def rows(size: Size, device: str) -> list[Row]:
    """A row for each way: BF16's time over its own, chunk by chunk."""
    found, base = [], 0.0
    for name, way in WAYS.items():
        case = f"Llama, {name}"
        if name == "torchao" and find_spec("torchao") is None:
            found.append(Row(case=case, measure="", note="torchao not installed"))
            continue
        _, seconds, note = trained(way, size, device)
        base = base or median(seconds)
        ratios = [base / one for one in seconds]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found.append(
            Row(
                case=case,
                measure="of bf16's speed",
                median=middle,
                low=low,
                high=high,
                rounds=len(ratios),
                milliseconds=1e3 * median(seconds),
                note=note,
            )
        )
    return found
