"""What `coverage.py` finds out about one model: is the recipe in force, and where not.

Three runs of two AdamW steps start from the same parameters: the plain model, FP32 with units, and
FP8. Every run draws the same dropout.
"""

import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_checks import difference, first_line
from zoo_entry import Entry

import unitscale as us
from unitscale.data import Split

STEPS = 2
KNOWN = 0.99
"""A smaller share of the plain model's multiply-adds in the summary means that some are missing."""


def check(entry: Entry, text: Split) -> dict[str, Any]:
    """The row of one model, a flat dict of numbers, words and lists.

    Numbers `loss`, `gradients` and `parameters` are largest relative differences of FP32 with units
    from the plain model, 0 for equal to the bit. `against` says which plain model that is: where
    torch.compile alone changes a bit, "compiled" is the one that runs by its backend "eager".
    """
    start = time.perf_counter()
    with torch._dynamo.config.patch(**entry.dynamo):
        plain = run(entry, text, lambda model: model)
        ours = run(entry, text, lambda model: us.unit_scale(model, "fp32-units", inner="eager"))
        found, against = compare(plain, ours), "plain"
        if any(found.values()):
            compiled = run(entry, text, compile_in_place)
            if (other := compare(compiled, ours)) != found:
                found, against = other, "compiled"
        fp8 = run(entry, text, lambda model: us.unit_scale(model, "fp8", inner="eager"))
    summary = us.summary(fp8["model"])
    known = summary.plain_macs + sum(product.macs for product in summary.products)
    macs = multiply_adds(entry, text)
    return {
        "family": entry.family,
        **found,
        "against": against,
        "first_losses": [run["losses"][0] for run in (plain, ours, fp8)],
        "in_force": fp8["losses"][0] != ours["losses"][0],
        "coverage": summary.coverage,
        "units": summary.units,
        "products": sum(product.why is None for product in summary.products),
        "unrounded": unrounded(summary),
        "plain": {path or "the model": first_line(why) for path, why in summary.plain.items()},
        "unseen": list(summary.unseen),
        "warnings": sorted({first_line(w) for w in fp8["warnings"]}),
        "known": known / macs if macs else None,
        "breaks": list(summary.breaks) if known < KNOWN * macs else [],
        "silent": is_silent(summary, known, macs),
        "seconds": round(time.perf_counter() - start, 1),
    }


def unrounded(summary: Any) -> list[dict[str, Any]]:
    """The products in full precision by reason: how many, which, and their multiply-adds."""
    reasons: dict[str, list[Any]] = {}
    for product in summary.products:
        if product.why is not None:
            reasons.setdefault(product.why, []).append(product)
    return [
        {
            "why": why,
            "products": len(found),
            "names": [product.name for product in found[:3]],
            "macs": sum(product.macs for product in found),
        }
        for why, found in reasons.items()
    ]


def is_silent(summary: Any, known: int, macs: int) -> bool:
    """Whether something is in full precision without a word.

    Either no product is rounded and no reason is given, or torch's own count of the plain model's
    multiply-adds has some that the summary neither counts nor says it cannot know: those of code
    between two graphs.
    """
    is_nothing = summary.coverage == 0 and not summary.plain and not unrounded(summary)
    return is_nothing or (known < KNOWN * macs and not summary.breaks)


def compile_in_place(model: nn.Module) -> nn.Module:
    """The plain model as torch.compile captures it."""
    model.compile(backend="eager")
    return model


def run(entry: Entry, text: Split, prepare: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """Losses, gradients of every step, final parameters and warnings of two steps."""
    torch._dynamo.reset()
    seed(0)
    model = entry.build()
    found: list[str] = []
    losses, gradients = [], {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, entry.lr)
        for step in range(STEPS):
            seed(step)
            optimizer.zero_grad()
            loss = loss_of(model(**entry.batch(text, step)))
            loss.backward()
            for name, p in model.named_parameters():
                gradients[f"{step} {name}"] = None if p.grad is None else p.grad.clone()
            optimizer.step()
            losses.append(loss.item())
        found = [str(w.message) for w in caught if "recipe" in str(w.message)]
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {
        "model": model,
        "losses": losses,
        "gradients": gradients,
        "parameters": parameters,
        "warnings": found,
    }


def seed(number: int) -> None:
    """Seed everything that a model may draw from."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 models of transformers draw masks from it
    torch.manual_seed(number)


def loss_of(output: Any) -> Tensor:
    """The scalar loss in a model's output: a tensor, a dict or an object with one."""
    if isinstance(output, Tensor):
        return output
    loss: Tensor = output["loss"] if isinstance(output, dict) else output.loss
    return loss


def compare(plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Largest relative differences of two runs: of losses, gradients and parameters."""
    losses = zip(plain["losses"], ours["losses"], strict=True)
    return {
        "loss": max(abs(x - y) / (abs(x) or 1.0) for x, y in losses),
        "gradients": largest(plain["gradients"], ours["gradients"]),
        "parameters": largest(plain["parameters"], ours["parameters"]),
    }


def largest(plain: dict[str, Tensor | None], ours: dict[str, Tensor | None]) -> float:
    """The largest relative difference of two sets of tensors; a missing one counts as 1."""
    found = [0.0]
    for name, x in plain.items():
        y = ours[name]
        if x is None or y is None:
            found.append(float(x is not y))
        else:
            found.append(difference(x, y))
    return max(found)


def multiply_adds(entry: Entry, text: Split) -> int:
    """Those of a forward pass of the plain model, by torch's own counter; 0 if that fails."""
    seed(0)
    model, counter = entry.build(), FlopCounterMode(display=False)
    try:
        with counter:
            model(**entry.batch(text, 0))
    except AssertionError:  # its module tracker does not stand a Function that runs modules
        return 0
    return int(counter.get_total_flops()) // 2
