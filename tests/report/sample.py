"""A comparison as results.json holds it."""

import random
from collections.abc import Iterable
from typing import Any


def run(recipe: str, seed: int, valid_loss: float | None, **other: Any) -> dict[str, Any]:
    """An entry of `runs` in results.json."""
    return {
        "recipe": recipe,
        "seed": seed,
        "final_train_loss": valid_loss,
        "valid_loss": valid_loss,
        "diverged": valid_loss is None,
        "tokens_per_s": 1000.0 * (seed + 1),
        "peak_bytes_saved_for_backward": 2**20,
        "share_in_range": {"activations": 0.5, "gradients": None, "weights": 1.0},
    } | other


RUNS = [
    run("fp32", 0, 1.0),
    run("fp8", 0, 1.1),
    run("fp8-none", 0, None),
    run("fp32", 1, 2.0),
    run("fp8", 1, 2.2),
    run("fp8-none", 1, 3.0),
]

RESULTS = {"data": "a<b>.txt", "model": "attention", "steps": 20, "runs": RUNS, "config": {"x": 1}}

LIMITS = {
    "E4M3FN": {"max": 448.0, "min_normal": 2.0**-6, "min_subnormal": 2.0**-9},
    "E5M2": {"max": 57344.0, "min_normal": 2.0**-14, "min_subnormal": 2.0**-16},
}


def recording_rows(
    *,
    steps: Iterable[int],
    layers: int = 4,
    fault_at: int | None = None,
    layer: int = 0,
    noise: bool = False,
) -> list[dict[str, Any]]:
    """What `record.record` gives of some layers, each with a linear and an add, both directions.

    From `fault_at` on the gradients of one layer's linear are 2**-20 of what they were. With
    `noise` no two numbers are alike, the worst case for the size of a file.
    """
    draw = random.Random(0).random
    rows: list[dict[str, Any]] = [{"formats": LIMITS, "every": 50}]
    for step in steps:
        for index in range(layers):
            for op in ("linear", "add"):
                for direction in ("value", "gradient"):
                    is_gradient = direction == "gradient"
                    is_fault = fault_at is not None and step >= fault_at and index == layer
                    lost = is_fault and is_gradient and op == "linear"
                    size = 2.0 ** (-10 * is_gradient - 20 * lost + (8 * draw() if noise else 0))
                    share = draw() ** 4 / 3 if noise else float(lost)
                    rows.append(
                        {
                            "step": step,
                            "name": f"layers.{index}.{op}",
                            "op": op,
                            "direction": direction,
                            "held_log2": 0,
                            "rms": size,
                            "amax": 4 * size * (1 + draw() * noise),
                            "mean": 0.0,
                            "kurtosis": 3.0 + 50 * draw() * noise,
                            "drift": 1.0,
                            "histogram": [-12, [1, 2, 3]],
                            "formats": {
                                name: {
                                    "flushed": share,
                                    "subnormal": draw() * noise,
                                    "saturated": share**2 * noise,
                                    "sqnr_db": 30.0 - 20 * draw() * noise,
                                }
                                for name in LIMITS
                            },
                        }
                    )
    return rows
