"""A run before its first step: its model, its optimizer and its loss scale."""

from collections.abc import Mapping
from typing import Any

import torch

from unitscale import optim
from unitscale.models import CharLM
from unitscale.models.next_byte import build
from unitscale.optim.rules import Kind
from unitscale.train.checkpoint import TrainState
from unitscale.train.config import TrainConfig
from unitscale.train.device import DTYPES, find_device
from unitscale.train.loss_scale import LossScale

# What u-muP's rules leave open: a byte's embedding learns at every step, a word's rarely. 700 steps
# of 8 windows, fp32-units, seeds 0 to 2: 1.849 with 1 and 1, 1.833 with these; standard 1.824.
UNIT_SCALED_RATES: Mapping[Kind, float] = {"input": 0.1, "output": 2.0}


class ModelError(RuntimeError):
    """The factory of an existing model failed."""


def initial_state(config: TrainConfig) -> TrainState:
    """Model, optimizer and loss scale before the first step; seeds torch's generators.

    The first parameters are drawn on the CPU in FP32, so that every device and dtype begins at the
    same ones.

    Raises:
        ModelError: the factory of an existing model failed.
        ValueError: no such device.
    """
    # Dynamo compiles one function eight times at most, and from then on runs it as it is: without
    # this, the later runs of a process would train with no recipe at all, and not say so.
    torch.compiler.reset()
    device = find_device(config.device)
    torch.manual_seed(config.seed)
    model = build_model(config).to(device, DTYPES[config.dtype])
    if isinstance(model, CharLM) and config.dtype != "fp32":
        # In BF16 a loss would have three digits; existing models get theirs in FP32 as well.
        model.readout.register_forward_hook(in_float32)
    return TrainState(
        model, build_optimizer(config, model), LossScale.of(config.numerics.loss_scale)
    )


def in_float32(module: torch.nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    """A forward hook: the output in FP32."""
    return logits.float()


def build_model(config: TrainConfig) -> torch.nn.Module:
    """The model that a configuration names, in FP32 on the CPU.

    Raises:
        ModelError: the factory of an existing model failed.
    """
    if config.existing is None:
        return CharLM(config.model_config)
    try:
        return build(config.existing, config.model_options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{config.existing} failed with {config.model_options}: {type(error).__name__}: "
            f"{reason}"
        ) from error


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW: torch's own, or with the u-muP rules for a model written unit-scaled."""
    options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    if config.is_written_unit_scaled:
        return optim.AdamW(model, config.peak_lr, rates=UNIT_SCALED_RATES, **options)
    return torch.optim.AdamW(model.parameters(), config.peak_lr, **options)
