"""A run before its first step: its model, its optimizer and its loss scale."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from unitscale import optim
from unitscale.models import CharLM
from unitscale.models.existing import find_factory
from unitscale.models.language import BYTES
from unitscale.models.next_byte import NextByte, as_loss, own_path
from unitscale.models.positions import positions_of
from unitscale.optim.rules import Kind
from unitscale.optim.uses import said_kinds
from unitscale.train.checkpoint import TrainState
from unitscale.train.config import TrainConfig
from unitscale.train.device import DTYPES, find_device
from unitscale.train.loss_scale import LossScale
from unitscale.train.throughout import hold_

# What u-muP's rules leave open: a byte's embedding learns at every step, a word's rarely. 700 steps
# of 8 windows, fp32-units, seeds 0 to 2: 1.849 with 1 and 1, 1.833 with these; standard 1.824.
UNIT_SCALED_RATES: Mapping[Kind, float] = {"input": 0.1, "output": 2.0}


EXPECTED = (
    "expected a language model over byte ids [batch, time]: model(ids) gives logits, or "
    "model(ids, targets) the loss; see docs/existing_models.md, and `unitscale analyse` for others"
)
"""What `compare` and `train` can train of other people's models."""


class ModelError(RuntimeError):
    """The factory of an existing model failed, or its model did."""


class OutputError(ModelError):
    """The factory of an existing model gave something else than a model over bytes."""


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
    optimizer, loss_scale = build_optimizer(config, model), LossScale.of(config.numerics.loss_scale)
    if (how := config.numerics.throughout) is not None:
        hold_(optimizer, how, loss_scale=loss_scale.scale, seed=config.seed, step=0)
    return TrainState(model, optimizer, loss_scale)


def in_float32(module: torch.nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    """A forward hook: the output in FP32."""
    return logits.float()


def build_model(config: TrainConfig) -> torch.nn.Module:
    """The model that a configuration names, in FP32 on the CPU.

    Raises:
        ModelError: the factory of an existing model failed. OutputError: it returned no model.
    """
    if config.existing is None:
        return CharLM(config.model_config)
    name, options = config.existing, config.model_options
    with failing(f"{name} failed with {options}"):
        made = find_factory(name, options)(**options)
    try:
        return as_loss(made, name)
    except ValueError as error:
        raise OutputError(str(error)) from error


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn whatever a person's own model raises into a ModelError of one line."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, OutputError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"{what}: {type(error).__name__}: {reason}") from error


def check_output(config: TrainConfig, model: torch.nn.Module) -> None:
    """Call an existing model once, on bytes up to 255, and look at what it returns.

    Torch's random state and the model's buffers are left as they were.

    Raises:
        ModelError: the call failed. OutputError: because of too few symbols; or what it returned is
            no loss of one number with a gradient, nor logits.
    """
    if config.existing is None:
        return
    shape = config.batch_size, config.sequence_length
    ids = 255 - torch.arange(shape[0] * shape[1], device=find_device(config.device)) % BYTES
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    try:
        what = f"{config.existing} failed on bytes ({EXPECTED})"
        with failing(what), torch.random.fork_rng(devices=devices):
            refuse_output(config.existing, model, ids.view(shape))
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def refuse_output(name: str, model: torch.nn.Module, ids: torch.Tensor) -> None:
    """Raise OutputError unless a model gives a loss, or one within `NextByte` logits, for bytes."""
    try:
        if isinstance(model, NextByte):
            output: Any = model.model(ids)
            found = getattr(output, "logits", output)
            fits = isinstance(found, torch.Tensor) and found.shape[:-1] == ids.shape
            fits = fits and found.shape[-1] >= BYTES
            size = ", ".join(map(str, ids.shape))
            expected = f"logits of shape [{size}, {BYTES} or more], or an object with .logits"
        else:
            output = model(ids, ids)
            fits = isinstance(output, torch.Tensor) and output.numel() == 1
            fits = fits and output.requires_grad
            expected = "the mean loss, one number with a gradient"
    except (IndexError, RuntimeError, ValueError) as error:
        length, positions = ids.shape[-1], positions_of(model)
        is_full = isinstance(error, torch.OutOfMemoryError)
        if positions is not None and positions < length and not is_full:
            raise OutputError(
                f"{name} takes {positions} tokens at once, and sequence_length is {length}; use "
                f"--sequence-length {positions} or less, or a model of more positions"
            ) from error
        if not isinstance(error, IndexError):
            raise
        raise OutputError(
            f"{name} failed on bytes: IndexError: {error}; expected a model of at least 256 "
            f"symbols and {length} positions, as sequence_length says"
        ) from error
    if not fits:
        called = "ids" if isinstance(model, NextByte) else "ids and targets"
        raise OutputError(f"{name} returned {described(output)} for {called}; expected {expected}")


def described(output: Any) -> str:
    """What a model returned, in a few words."""
    if output is None:
        return "nothing"
    if isinstance(output, torch.Tensor):
        without = "" if output.requires_grad else " without a gradient"
        return f"a tensor of shape {[*output.shape]}{without}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(repr, output))}"
    parts = f" of {len(output)}" if isinstance(output, tuple | list) else ""
    return f"a {type(output).__name__}{parts}"


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD: torch's own, or with the u-muP rules for a model written unit-scaled.

    An existing model is written so if its parameters say their kinds. With `states`, ours for
    either.

    Raises:
        ValueError: states that cannot hold the model's dtype.
        OutputError: as `says_kinds`.
    """
    options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        options["momentum"], _ = options.pop("betas")
    ours = optim.SGD if config.optimizer == "sgd" else optim.AdamW
    if config.states is not None:
        options |= {"states": config.states, "seed": config.seed % 2**63}
    if config.is_written_unit_scaled:
        # These rates were found with Adam; SGD also sees how large the gradients are.
        rates = UNIT_SCALED_RATES if config.optimizer == "adamw" else None
        return ours(model, config.peak_lr, rates=rates, **options)
    if says_kinds(config, model):
        return ours(model, config.peak_lr, **options)
    if config.states is not None:
        return ours(model, config.peak_lr, rules=None, **options)
    plain = torch.optim.SGD if config.optimizer == "sgd" else torch.optim.AdamW
    return plain(model.parameters(), config.peak_lr, **options)


def says_kinds(config: TrainConfig, model: torch.nn.Module) -> bool:
    """Whether the parameters of an existing model say their kinds, and so have rates of their own.

    Raises:
        OutputError: only some do, or no learning rate is given, whose default is for plain models.
    """
    if config.existing is None:
        return False
    said, silent = said_kinds(model)
    if not said:
        return False
    if silent:
        raise OutputError(
            f"{config.existing}: {own_path(model, said[0])!r} says its kind and "
            f"{own_path(model, silent[0])!r} does not ({len(silent)} of {len(said) + len(silent)} "
            "parameters), so no learning rate follows; take modules of unitscale.nn or "
            "us.Parameter(..., kind=) for all of them, or for none"
        )
    if config.lr is None:
        raise OutputError(
            f"{config.existing} is written unit-scaled (its parameters say their kinds), and the "
            "default learning rate is for plain models; give lr (--lr), where near 1 is usual"
        )
    return True
