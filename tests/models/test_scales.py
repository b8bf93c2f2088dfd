"""Scales at the start: every module's output and its gradient, every weight's gradient."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unitscale.models import CharLM, CharLMConfig
from unitscale.models.config import CHOICES

CONFIG = CharLMConfig(unit_scaled=True)

# Measured ranges of (activations, their gradients, weight gradients) on random bytes, 4 layers of
# width 128, four placements of the norm, widened by a tenth. The exceptions to "about 1":
# - Attention averages over values that are nearly independent in the first layer, where its output
#   is 0.48 (0.21 without norm), and correlated in the later ones, where it is 1.6.
# - The rnn's weights see the gradients of all steps, correlated in time: up to 3.2; a
#   norm's bias up to 4.2.
# Real text correlates weight gradients further (all tokens move the logits the same way at first):
# 2 to 30 there.
RANGES = {
    "attention": ((0.19, 1.9), (0.13, 2.8), (0.21, 5.7)),
    "conv": ((0.87, 1.9), (0.75, 1.55), (0.75, 1.65)),
    "rnn": ((0.87, 2.3), (0.4, 1.5), (0.65, 4.6)),
}


def rms(x: Tensor) -> float:
    return x.detach().square().mean().sqrt().item()


def measure(config: CharLMConfig) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Rms of outputs, of their gradients and of parameter gradients, by name."""
    outputs: dict[str, float] = {}
    grads: dict[str, float] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            outputs[name] = rms(output)
            output.register_hook(lambda grad: grads.__setitem__(name, rms(grad)))

        return hook

    model = CharLM(config)
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    ids = torch.randint(256, (8, config.context + 1))
    model(ids[:, :-1], ids[:, 1:]).backward()
    return outputs, grads, {name: rms(p.grad) for name, p in model.named_parameters()}


def assert_within(values: dict[str, float], low: float, high: float) -> None:
    outside = {name: value for name, value in values.items() if not low < value < high}
    assert not outside, f"outside [{low}, {high}]: {outside}"


def test_assert_within_names_what_is_outside() -> None:
    with pytest.raises(AssertionError, match="b"):
        assert_within({"a": 1.0, "b": 3.0, "c": 1.0}, 0.5, 2.0)


@pytest.mark.parametrize(("layer", "norm"), list(itertools.product(RANGES, CHOICES["norm"])))
def test_unit_scaled_model_starts_in_range(layer: str, norm: str) -> None:
    outputs, grads, weight_grads = measure(replace(CONFIG, layer=layer, norm=norm))
    logits = outputs.pop("readout")
    assert 0.9 < logits * math.sqrt(CONFIG.width) < 1.1
    for values, limits in zip((outputs, grads, weight_grads), RANGES[layer], strict=True):
        assert_within(values, *limits)


@pytest.mark.parametrize("layer", RANGES)
def test_standard_model_does_not(layer: str) -> None:
    _, grads, weight_grads = measure(replace(CONFIG, layer=layer, unit_scaled=False))
    # A mean over 1024 tokens and 256 classes: each gradient is near 1 / (1024 * 16).
    assert max(grads.values()) < 1e-3
    assert max(weight_grads.values()) < 0.1


@pytest.mark.parametrize("layer", RANGES)
def test_unit_scaled_weights_start_at_one(layer: str) -> None:
    for name, parameter in CharLM(replace(CONFIG, layer=layer)).named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert 0.97 < rms(parameter) < 1.03
