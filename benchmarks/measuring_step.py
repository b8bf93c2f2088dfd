"""What a measuring step costs beside an ordinary step of the same recipe: time and peak memory.

    python benchmarks/measuring_step.py --rounds 5

A Llama of `unitscale.models` with activations that outweigh its parameters, in eager mode. Each
figure comes from a process of its own; ordinary and measuring processes take turns. The first steps
of both set the units. The peak is that of torch's allocations, by its profiler. A round gives one
ratio; printed are the median over the rounds and the smallest and largest.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from statistics import median

KINDS = {"ordinary": (0,), "measuring": range(1_000_000)}
"""When a process measures: at its first step alone, or at every step."""


def peak_bytes(step: Callable[[], object]) -> int:
    """The most that is allocated at one time during a step, beyond what was before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = found.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


def work(kind: str, recipe: str, steps: int) -> None:
    """Time the steps of one kind, and print the median with the peak of one more."""
    import torch

    from unitscale.models.next_byte import build
    from unitscale.units import unit_scale

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"context": 256, "width": 256, "depth": 4, "heads": 4}
    model = build("llama", sizes)
    unit_scale(model, recipe, inner="eager", remeasure=KINDS[kind])
    ids = torch.randint(256, (2, 8, 257))

    def step(windows: torch.Tensor) -> float:
        begin = time.perf_counter()
        model(windows[:, :-1], windows[:, 1:]).backward()
        return time.perf_counter() - begin

    step(ids[0, :1])  # captured, and the units set, on a small batch
    model.zero_grad()
    step(ids[0])
    seconds = [step(ids[i % 2]) for i in range(steps)]
    model.zero_grad()
    peak = peak_bytes(lambda: step(ids[0]))
    print(json.dumps({"seconds": median(seconds), "bytes": peak}))


def run(kind: str, recipe: str, steps: int) -> dict[str, float]:
    """The figures of one process."""
    arguments = [
        sys.executable,
        __file__,
        "--work",
        kind,
        "--recipe",
        recipe,
        "--steps",
        str(steps),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a line for time and one for memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="fp8")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.recipe, options.steps)
        return
    import torch

    rounds = [
        {kind: run(kind, options.recipe, options.steps) for kind in KINDS}
        for _ in range(options.rounds)
    ]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, ")
    print(f"recipe {options.recipe}, {options.rounds} rounds of {options.steps} steps")
    for what in ("seconds", "bytes"):
        ratios = [found["measuring"][what] / found["ordinary"][what] for found in rounds]
        ordinary = median(found["ordinary"][what] for found in rounds)
        print(
            f"{what}: ordinary {ordinary:.4g}; measuring over ordinary {median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
