"""How large a report is, and how long it takes to write: of a long recording with what-if.

    python benchmarks/report_size.py --tensors 500 --recipes 8 --steps 100 --out report.html

No two numbers are alike, which is the worst case for its size.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unitscale.recipes import RECIPES
from unitscale.report import write_html

LIMITS = {
    "E4M3FN": {"max": 448.0, "min_normal": 2.0**-6, "min_subnormal": 2.0**-9},
    "E5M2": {"max": 57344.0, "min_normal": 2.0**-14, "min_subnormal": 2.0**-16},
}
NAMES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
OPERANDS = ("output.input", "output.weight", "grad_input.grad_output", "grad_weight.input")
RESULTS = ("output", "grad_input", "grad_weight")


def rows(tensors: int, recipes: int, steps: int) -> Iterator[dict[str, Any]]:
    """A recording of so many tensors, each a product of a model of many layers."""
    draw = random.Random(0).random
    names = [name for name in RECIPES if name != "fp32"][:recipes]
    yield {"formats": LIMITS, "every": 1}
    for step in range(steps):
        for i in range(tensors):
            module = f"model.layers.{i // len(NAMES)}.{NAMES[i % len(NAMES)]}"
            size = 2.0 ** (8 * draw())
            yield {
                "step": step,
                "name": f"{module}.linear",
                "op": "linear",
                "direction": "value" if i % 2 else "gradient",
                "held_log2": 0,
                "rms": size,
                "amax": 4 * size * (1 + draw()),
                "kurtosis": 3 + 50 * draw(),
                "histogram": [-12, [1 + int(9 * draw()) for _ in range(20)]],
                "formats": {
                    name: {
                        "flushed": draw() ** 4,
                        "subnormal": draw(),
                        "saturated": draw() ** 8,
                        "sqnr_db": 40 * draw(),
                    }
                    for name in LIMITS
                },
            }
            yield {
                "what_if": f"{module}.linear",
                "formats": LIMITS,
                "step": step,
                "op": "linear",
                "module": module,
                "macs": 1 + int(1e9 * draw()),
                "recipes": {
                    name: {
                        "errors": {result: draw() ** 2 for result in RESULTS},
                        "operands": {o: [40 * draw(), draw() ** 9, draw() ** 9] for o in OPERANDS},
                    }
                    for name in names
                },
            }


def main() -> None:
    """Write the page, and print its size and the time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tensors", type=int, default=500)
    parser.add_argument("--recipes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    args = parser.parse_args()
    begin = time.perf_counter()
    write_html(rows(args.tensors, args.recipes, args.steps), args.out)
    seconds, size = time.perf_counter() - begin, args.out.stat().st_size
    print(
        f"{args.tensors} tensors, {args.recipes} recipes, {args.steps} steps: "
        f"{size / 1e6:.2f} MB, written in {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
