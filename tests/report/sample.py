"""A comparison as results.json holds it."""

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
