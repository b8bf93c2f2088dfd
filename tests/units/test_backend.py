"""`torch.compile(model, backend="unitscale")`, by entry point."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from units.training import TwoLayers

SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
plain = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
options = {"recipe": "fp8", "inner": "eager", "remeasure": "once"}
model = torch.compile(plain, backend="unitscale", options=options)
x = torch.randn(4, 8)
losses = []
for _ in range(3):
    loss = model(x).square().mean()
    loss.backward()
    losses.append(loss.item())
exact = plain(x).square().mean().item()
assert losses[0] == losses[1] == losses[2], losses  # the step that measures is one like others
assert losses[0] != exact, "nothing was rounded"
assert abs(losses[2] / exact - 1) < 0.1
"""


def test_backend_is_found_by_name_with_nothing_imported():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def compiled(**options) -> tuple[nn.Module, nn.Module]:
    plain = TwoLayers()
    options = {"inner": "eager"} | options
    return torch.compile(plain, backend="unitscale", options=options), plain


def test_recipe_without_units_is_applied_without_units():
    """fp8-none rounds from the first step on: it has nothing to measure."""
    model, plain = compiled(recipe="fp8-none")
    x = torch.randn(4, 8) * 1e4
    assert model(x) != plain(x)  # saturated


def test_units_only_is_the_plain_model():
    model, plain = compiled(recipe="fp32-units")
    for _ in range(3):
        x = torch.randn(4, 8)
        loss, wanted = model(x), plain(x)
        assert torch.equal(loss, wanted)
        loss.backward()


def test_skip_leaves_products_as_they_are():
    x = torch.randn(4, 8)
    losses = []
    for skip in ((), ("first",), ("*",)):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, plain = compiled(recipe="fp8-e4m3-none", skip=skip)
        losses.append((model(x) / plain(x)).item())
    assert losses[2] == 1.0
    assert len(set(losses)) == 3


def test_unknown_option_is_refused_and_the_known_ones_are_listed():
    model, _ = compiled(formats="fp8")
    with pytest.raises(
        Exception, match=r"unknown options \['formats'\]; expected \['recipe', 'inner'"
    ):
        model(torch.randn(4, 8))


def test_unknown_recipe_is_refused():
    model, _ = compiled(recipe="fp9")
    with pytest.raises(Exception, match="unknown recipe 'fp9'"):
        model(torch.randn(4, 8))
