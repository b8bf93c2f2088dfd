"""Whole models by the kernels of hardware, in software: the numbers of the emulated recipe."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import unitscale as us
from gemm import software
from unitscale.gemm import executor
from unitscale.recipes import RECIPES

BLOCKWISE = ["fp8-block", "mxfp8", "nvfp4", "nvfp4-units"]


def results(name: str, by: str) -> list[torch.Tensor]:
    """Output and gradients of a small model at its third step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 72), nn.GELU(), nn.Linear(72, 40, bias=False))
    recipe = replace(RECIPES[name], executor=by)
    scale = us.unit_scale if recipe.unit_scaled else us.apply_recipe
    scale(model, recipe=recipe)
    x = torch.randn(31, 60)
    output = x
    for _ in range(3):
        torch.manual_seed(1)  # of stochastic rounding
        model.zero_grad()
        output = model(x)
        output.square().mean().backward()
    return [output.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("name", ["fp8-rowwise", "fp8-rowwise-hp", *BLOCKWISE])
def test_model_by_kernels_is_the_emulated_one(monkeypatch, name):
    """Up to the order of sums. With units their factors go into the kernel's scales."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return software.scaled_mm(*args, **kwargs)

    monkeypatch.setattr(executor, "shortfall", lambda *_: None)
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", counted)
    want = results(name, "emulated")
    assert not calls
    got = results(name, "scaled_mm")
    # Two layers, three steps; the first has no gradient of its input, the last grad_weight in BF16.
    assert len(calls) >= 3 * (3 if name == "fp8-rowwise-hp" else 5)
    for one, other in zip(got, want, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("name", BLOCKWISE)
def test_cpu_without_the_kernel_is_refused_and_the_model_left(name):
    model = nn.Sequential(nn.Linear(32, 32))
    recipe = replace(RECIPES[name], executor="scaled_mm")
    scale = us.unit_scale if recipe.unit_scaled else us.apply_recipe
    with pytest.raises(ValueError, match="a CPU has scales for tensors and rows alone; use 'auto'"):
        scale(model, recipe=recipe)(torch.ones(2, 32))
