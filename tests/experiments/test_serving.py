"""The numerics of servers, as the experiment on serving writes them out."""

import argparse

import torch
from torch import nn

import serving


def test_layers_are_rounded_inside_of_the_context_alone() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(8, 8, bias=False)})
    layer, x = model["layer"], torch.randn(4, 8)
    plain, weight = layer(x), layer.weight.detach().clone()
    units, amaxes = {"layer": (-2, 0)}, {"layer": x.abs().max().item()}
    for way in serving.WAYS:
        with serving.rounding(model, way, units, amaxes):
            out = layer(x)
        # Each factor of each of 8 terms is off by at most 1/16 of itself.
        bound = (2 / 16 + 1 / 256) * (x.abs() @ weight.abs().T)
        assert ((out - plain).abs() <= bound + 2**-9).all(), way
        assert not torch.equal(out, plain)
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer(x), plain)


def test_units_are_exact_on_what_the_format_holds() -> None:
    x = torch.tensor([1.0, 1.125, 448 * 2**-3])
    assert torch.equal(serving.rounded(x, torch.tensor(2.0**-3)), x)


def test_the_page_has_a_row_for_each_numerics_and_the_difference_of_each_seed() -> None:
    rows = [
        {"recipe": recipe, "seed": seed, "numerics": way, "loss": 2 + seed, "kl": 0.001 * seed}
        for recipe in serving.RECIPES
        for seed in (0, 1)
        for way in ("FP32", *serving.WAYS)
    ]
    args = argparse.Namespace(width=64, depth=2, steps=10, seeds=2)
    page = serving.report(args, rows)
    assert page.count("\n| fp32 |") == page.count("\n| fp8-serve |") == 5
    assert "2.5000 +- 0.7071 | 0.50 +- 0.71" in page
    assert page.endswith("seed by seed: +0.0000, +0.0000.\n")
