"""What is checked of one architecture: capture, units, agreement with the plain model, FP8 losses.

Every check returns a flat dict of numbers and words, the row of a JSONL file.
"""

import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch._dynamo.utils
import transformers
from torch import Tensor, nn
from zoo_entry import Entry, loss_of

from unitscale.data import Split
from unitscale.units import UnitRow, apply_recipe, measured, unit_scale
from unitscale.units.assign import is_rounding_error
from unitscale.units.forward import session_of
from unitscale.units.session import Executable

EXACT_STEPS = 10
TAIL = 20
"""The loss of a run is the mean over its last steps."""

ARMS: dict[str, Callable[[nn.Module], Any]] = {
    "fp32": lambda model: model.compile(backend="eager"),
    "fp32-again": lambda model: model.compile(backend="eager"),
    "fp8": lambda model: unit_scale(model, "fp8", inner="eager"),
    "fp8-none": lambda model: apply_recipe(model, "fp8-none", inner="eager", remeasure="geometric"),
}
"""What a training run does to the model; fp32-again starts from other parameters."""


def run(check: str, entry: Entry, text: Split, steps: int) -> dict[str, Any]:
    """The result of a check: units, exact, peer or an arm of training."""
    if check == "units":
        return check_units(entry, text)
    if check == "exact":
        return check_exact(entry, text)
    if check == "peer":
        from zoo_peer import check_peer

        return check_peer(entry, text)
    return check_training(entry, text, check, steps)


def fresh(entry: Entry, *, seed: int = 0) -> nn.Module:
    """A model with its first parameters, and no code compiled for another one."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for name, value in entry.dynamo.items():
        setattr(torch._dynamo.config, name, value)
    torch.manual_seed(seed)
    return entry.build()


def check_units(entry: Entry, text: Split) -> dict[str, Any]:
    """Capture, shares in range on the measured batch and on another, and what kept (1, 1)."""
    model = unit_scale(fresh(entry), "fp32-units", inner="eager")
    start = time.perf_counter()
    calibration = measured_rows(model, entry, text, -1)
    seconds = time.perf_counter() - start
    session = session_of(model)
    breaks = torch._dynamo.utils.counters["graph_break"]
    kept = Counter(
        re.sub(r" of [\d.e+-]+", "", row.reason)
        for row in calibration.values()
        if row.reason and row.op not in ("parameter", "input")
    )
    return {
        "graphs": len(session.executables),
        "graph_breaks": [first_line(reason) for reason in breaks],
        "tensors": sum(row.op not in ("parameter", "input") for row in calibration.values()),
        "first_step_s": round(seconds, 1),
        "shares": shares(calibration, calibration),
        "held_out": shares(calibration, measured_rows(model, entry, text, -2)),
        "kept_at_one": dict(kept),
        "zero_gradients": sum(is_zero(row, calibration) for row in calibration.values()),
    }


def measured_rows(model: nn.Module, entry: Entry, text: Split, step: int) -> dict[str, UnitRow]:
    """The rows after a forward and a backward pass on one batch."""
    transformers.set_seed(1)
    with measured(model) as found:
        loss_of(model, entry.batch(text, step)).backward()
    model.zero_grad()
    return {row.name: row for row in found}


def shares(units: dict[str, UnitRow], values: dict[str, UnitRow]) -> dict[str, list[float | None]]:
    """Shares in [1/2, 2] as [plain, at the units]: units of one batch, values of one.

    Activations are what an op computed and a gradient reached. What is exactly zero has no scale,
    nor has a parameter's gradient that is zero but for rounding.
    """
    pairs = [(units[name], row) for name, row in values.items() if name in units]
    reached = [(unit, row) for unit, row in pairs if row.grad_rms is not None]
    inner = [(u, row) for u, row in reached if row.op not in ("parameter", "input")]
    weights = [(u, row) for u, row in reached if row.op == "parameter" and not is_zero(row, values)]
    return {
        "activations": [
            in_range(row.rms for _, row in inner),
            in_range(row.rms / u.s for u, row in inner),
        ],
        "gradients": [
            in_range(row.grad_rms for _, row in inner),
            in_range(row.grad_rms * u.phi for u, row in inner),
        ],
        "weight gradients": [
            in_range(row.grad_rms for _, row in weights),
            in_range(row.grad_rms * u.phi for u, row in weights),
        ],
    }


def is_zero(row: UnitRow, values: dict[str, UnitRow]) -> bool:
    """Whether this is a parameter whose gradient is zero but for rounding (a key's bias, say)."""
    grads = (r.grad_rms for r in values.values() if r.op == "parameter" and r.grad_rms is not None)
    return row.op == "parameter" and is_rounding_error(row.grad_rms, max(grads, default=0.0))


def in_range(values: Iterable[float]) -> float | None:
    """Share of the non-zero values in [1/2, 2]; None of none."""
    scales = [value for value in values if value]
    return sum(0.5 <= value <= 2 for value in scales) / len(scales) if scales else None


def check_exact(entry: Entry, text: Split) -> dict[str, Any]:
    """Ten AdamW steps with units in FP32 against the plain model by the same inner compiler.

    Units are measured at the first step, so that nine steps run with all of their factors. Every
    number is a largest relative difference, 0 for equal to the bit: of the losses of all steps, of
    the second step's gradients, of the parameters in the end and of an evaluation loss.
    """
    plain = trace(entry, text, lambda model: model.compile(backend="eager"))
    ours = trace(
        entry,
        text,
        lambda model: unit_scale(model, "fp32-units", inner="eager", remeasure="once"),
    )
    losses = list(zip(plain["losses"], ours["losses"], strict=True))
    gradients = {
        name: difference(grad, ours["gradients"][name]) for name, grad in plain["gradients"].items()
    }
    parameters = {
        name: difference(value, ours["parameters"][name])
        for name, value in plain["parameters"].items()
    }
    return {
        "loss": max(abs(x - y) / abs(x) for x, y in losses),
        "gradients": max(gradients.values()),
        "parameters": max(parameters.values()),
        "evaluation": abs(plain["evaluation"] - ours["evaluation"]) / abs(plain["evaluation"]),
        "worst_gradient": max(gradients, key=gradients.__getitem__),
        "worst_parameter": max(parameters, key=parameters.__getitem__),
    }


def trace(entry: Entry, text: Split, prepare: Callable[[nn.Module], Any]) -> dict[str, Any]:
    """Losses, the second step's gradients, and the parameters and evaluation loss at the end."""
    model = fresh(entry)
    prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), entry.lr)
    losses, gradients = [], {}
    for step in range(EXACT_STEPS):
        losses.append(train_step(model, optimizer, entry, text, step))
        if step == 1:
            gradients = {
                name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
            }
    model.eval()
    with torch.no_grad():
        evaluation = loss_of(model, entry.batch(text, -3)).item()
    return {
        "losses": losses,
        "gradients": gradients,
        "parameters": {name: p.detach() for name, p in model.named_parameters()},
        "evaluation": evaluation,
    }


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, entry: Entry, text: Split, step: int
) -> float:
    """One step; seeded, so that every arm draws the same dropout, and the same masks from numpy."""
    transformers.set_seed(step)
    optimizer.zero_grad()
    loss = loss_of(model, entry.batch(text, step))
    loss.backward()
    optimizer.step()
    return loss.item()


def difference(x: Tensor, y: Tensor) -> float:
    """Largest absolute difference over the largest value of `x`; 0 for identical tensors."""
    if torch.equal(x, y):
        return 0.0
    return ((x - y).abs().max() / x.abs().max()).item()


def check_training(entry: Entry, text: Split, arm: str, steps: int) -> dict[str, Any]:
    """The loss at the end of one arm's run."""
    model = fresh(entry, seed=int(arm == "fp32-again"))
    losses: list[float] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ARMS[arm](model)
        optimizer = torch.optim.AdamW(model.parameters(), entry.lr)
        for step in range(steps):
            if step == 1:
                start = time.perf_counter()
            losses.append(train_step(model, optimizer, entry, text, step))
            if not math.isfinite(losses[-1]):
                break
    tail = losses[-TAIL:]
    session = session_of(model)
    return {
        "arm": arm,
        "steps": steps,
        "loss": sum(tail) / len(tail),
        "first_loss": losses[0],
        "step_ms": round(1e3 * (time.perf_counter() - start) / max(len(losses) - 1, 1)),
        "graphs": len(session.executables) if session else None,
        "products": len({t for e in session.executables for t in rounded_products(e)})
        if session
        else None,
        "lossy": sorted(name for name in session.store.warned) if session else [],
        "warnings": sorted({first_line(str(w.message)) for w in caught})[:5],
    }


def rounded_products(executable: Executable) -> list[str]:
    """The names of the products of a graph that the recipe rounds."""
    programs = executable.programs.values()
    return [executable.tensors[node].name for program in programs for node in program.rounded]


def first_line(text: str) -> str:
    """The first line of a message, shortened."""
    return text.strip().split("\n")[0][:160]
