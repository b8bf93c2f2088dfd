"""Whether FP8 can pay for layers of these sizes: rows for `doctor`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from unitscale.gemm.accelerator import Accelerator, find_accelerator, recognized
from unitscale.gemm.payoff import WAYS, Shape, judge

__all__ = ["model_on_paper", "speaks_for", "weigh"]

DEFAULT = "h100"
"""Whom it speaks for where nothing else is said: most published measurements are from it."""


def speaks_for(name: str | None) -> tuple[Accelerator, str]:
    """The device that is meant, and how that was decided.

    Raises:
        ValueError: no device has this name.
    """
    if name is not None:
        return find_accelerator(name), "named by --device-name"
    if torch.cuda.is_available():
        title = torch.cuda.get_device_name(0)
        if found := recognized(title):
            return found, f"the device of this machine, {title}"
        why = f"{title} is not in the table of devices; --device-name names one that is near"
        return find_accelerator(DEFAULT), why
    why = "this machine has no FP8 hardware; --device-name names another"
    return find_accelerator(DEFAULT), why


def weigh(layers: Iterable[tuple[str, Shape]], device_name: str | None = None) -> dict[str, Any]:
    """What FP8 costs and saves for layers of these shapes, as JSON has it; times in seconds.

    Args:
        layers: names and shapes; layers of one shape become one row.
        device_name: of the table in `gemm.accelerator`; None is the GPU of this machine, or H100.
    Raises:
        ValueError: no device has this name; no layers.
    """
    device, decided = speaks_for(device_name)
    named: dict[Shape, list[str]] = {}
    for name, shape in layers:
        named.setdefault(shape, []).append(name)
    if not named:
        raise ValueError("there is no linear layer to weigh; give sizes with --shapes MxKxN")
    rows = [row(shape, names, device) for shape, names in named.items()]
    return {
        "device": device.title,
        "decided": decided,
        "source": device.source,
        "assumed": assumed(device),
        "shapes": rows,
        "total": total(rows),
    }


def row(shape: Shape, names: list[str], device: Accelerator) -> dict[str, Any]:
    """One shape, and the layers that have it."""
    judged = judge(shape, device)
    return {
        "shape": str(shape),
        "layers": [name for name in names if name],
        "count": len(names),
        "operations_per_byte": round(shape.intensity, 1),
        "bf16_s": judged.bf16,
        "fp8_s": judged.fp8,
        "passes_s": judged.passes,
        "filling_s": judged.filling,
        "speedup": {way.name: judged.speedup(way.name) for way in WAYS},
        "torchao_converts": judged.converted,
        "verdict": judged.verdict,
        "why": judged.why,
    }


def assumed(device: Accelerator) -> str:
    """The numbers behind the numbers."""
    fp8 = "no FP8" if device.fp8 is None else f"{device.fp8 / 1e12:,.0f} in FP8"
    return (
        f"{device.bf16 / 1e12:,.0f} TFLOP/s in BF16, {fp8}, of which products reach 70 %; "
        f"{device.bandwidth / 1e12:g} TB/s; 3 us a kernel launch; nothing overlaps. A bound from "
        "above: what nanochat measured is 0.8 of the speedup here (docs/speed.md)"
    )


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All layers together, as they are, and with FP8 where the verdict is yes alone."""
    bf16 = sum(one["count"] * one["bf16_s"] for one in rows)
    found: dict[str, Any] = {"bf16_s": bf16}
    for way in WAYS:
        everywhere = chosen = 0.0
        for one in rows:
            speedup = one["speedup"][way.name]
            taken = one["bf16_s"] / speedup if speedup else one["bf16_s"]
            everywhere += one["count"] * taken
            chosen += one["count"] * (taken if one["verdict"] == "yes" else one["bf16_s"])
        found[way.name] = {"everywhere": bf16 / everywhere, "where yes": bf16 / chosen}
    return found


def model_on_paper(factory: Callable[[], Any]) -> nn.Module:
    """The model without its values, so that its size costs no memory.

    A factory for `analyse`, which makes a model and its inputs, will do.

    Raises:
        ValueError: the factory fails, or makes something else.
    """
    try:
        with torch.device("meta"):
            made = factory()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"the factory failed on the meta device: {type(error).__name__}: {first}; give sizes "
            "with --shapes MxKxN instead"
        ) from error
    model = made[0] if isinstance(made, tuple) and made else made
    if not isinstance(model, nn.Module):
        raise ValueError(f"the factory made a {type(made).__name__}; expected a torch module")
    return model
