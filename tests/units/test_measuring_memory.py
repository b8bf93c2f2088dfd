"""A measuring step needs no more memory than an ordinary step of the same recipe."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from marks import slow
from unitscale.units import unit_scale
from unitscale.units.forward import session_of

ROWS, WIDTH = 16384, 64


class Deep(nn.Module):
    """Activations of 4 MiB each, and parameters of 16 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh() * 2
        return x.square().mean()


class Checkpointed(Deep):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(lambda x, f=layer: x + f(x).tanh() * 2, x, use_reentrant=False)
        return x.square().mean()


def peak(run: Callable[[], None], folder: Path) -> int:
    """Bytes that a function has allocated at once, beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    found.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    memory = [e for e in events if e["name"] == "[memory]"]
    moved = [e["args"]["Bytes"] for e in sorted(memory, key=lambda e: e["ts"])]
    total = highest = 0
    for change in moved:
        total += change
        highest = max(highest, total)
    return highest


def test_peak_counts_what_is_held_at_once(tmp_path: Path) -> None:
    def run(together: bool) -> None:
        kept = []
        for _ in range(3):
            kept = [*kept, torch.ones(2**18)] if together else [torch.ones(2**18)]
            torch.ones(4)

    assert peak(lambda: run(True), tmp_path) == pytest.approx(3 * 2**20, rel=0.01)
    assert peak(lambda: run(False), tmp_path) == pytest.approx(2 * 2**20, rel=0.01)


@pytest.mark.parametrize("recipe", ["fp8", slow("fp32-units")])
@pytest.mark.parametrize("make", [Deep, Checkpointed])
def test_measuring_steps_take_no_more_memory(make, recipe, tmp_path: Path) -> None:
    """Steps 0, 1, 2 and 4 measure, 3 and 5 do not; step 1 has what step 0 left behind."""
    model = unit_scale(make(), recipe, inner="eager")
    x, measured, ordinary = torch.randn(ROWS, WIDTH), [], []

    def step() -> None:
        model(x).backward()

    for _ in range(6):
        model.zero_grad()
        bytes_at_once = peak(step, tmp_path)
        (measured if session_of(model).terms.measured else ordinary).append(bytes_at_once)
    assert (len(measured), len(ordinary)) == (4, 2)
    assert min(ordinary) > 4 * ROWS * WIDTH * 4  # activations dominate
    assert max(measured) <= 1.05 * min(ordinary), (measured, ordinary)
