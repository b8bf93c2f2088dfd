"""What recording costs: time of a step that is sampled, and bytes on disk.

    python benchmarks/record_overhead.py [--recipe fp32] [--model attention] [--samples 40]
        [--what-if fp8,fp8-current,mxfp8,nvfp4]

Two trainings of one model, in the default configuration of `unitscale train`, take turns, a step
each, and the first of each pair changes from step to step: so both see the same load of the
machine. One of them is recorded at every `--period`-th step. What a sample adds is the time of the
sampled step and of the one after it (which writes the rows) less that of the same two steps of the
other training, in units of the plain step; printed are the median and the quartiles over all
samples, and what that makes of a run that is recorded every 50th step. Times are CPU time of the
process, which other processes do not stretch.
"""

import argparse
import platform
import time
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import torch

from unitscale.record import record
from unitscale.train import TrainConfig
from unitscale.train.loop import initial_state
from unitscale.train.units import apply_numerics


class Subject:
    """A model in training on random bytes, and the CPU time of each of its steps."""

    def __init__(self, recipe: str, model: str) -> None:
        is_existing = model in ("gpt2", "llama")
        config = TrainConfig(
            recipe=recipe,
            existing=model if is_existing else None,
            model={} if is_existing else {"layer": model},
        )
        state = initial_state(config)
        apply_numerics(config, state.model, state.units)
        self.model, self.optimizer = state.model, state.optimizer
        self.ids = torch.randint(0, 256, (config.batch_size, config.sequence_length))
        self.times: list[float] = []

    def step(self) -> None:
        """One training step, at a rate that changes nothing much."""
        begin = time.process_time()
        self.optimizer.zero_grad()
        self.model(self.ids, self.ids).backward()
        self.optimizer.step()
        self.times.append(time.process_time() - begin)


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--period", type=int, default=4)
    parser.add_argument("--recipe", default="fp32")
    parser.add_argument("--model", default="attention", help="attention, conv, rnn, gpt2 or llama")
    parser.add_argument("--what-if", default="", help="all, or recipes with commas between them")
    options = parser.parse_args()
    if options.samples < 2 or options.period < 3:
        parser.error("at least 2 samples and a period of 3 are needed")
    torch.set_num_threads(1)
    plain, recorded = (Subject(options.recipe, options.model) for _ in range(2))
    period = options.period
    with TemporaryDirectory() as folder:
        path = Path(folder) / "numerics.jsonl"
        with record(
            recorded.model,
            every=period,
            path=path,
            optimizer=recorded.optimizer,
            what_if=options.what_if,
        ) as recorder:
            for subject in (plain, recorded):  # capture and warm-up, over several measurements
                for _ in range(2 * period):
                    subject.step()
                subject.times.clear()
            begin = path.stat().st_size
            for step in range(options.samples * period):
                for subject in (plain, recorded) if step % 2 else (recorded, plain):
                    subject.step()
            size = (path.stat().st_size - begin) / options.samples
            rows = len(recorder.latest)
    usual = median(plain.times)
    pairs = list(zip(recorded.times, plain.times, strict=True))
    samples = [
        sum(mine - other for mine, other in pairs[i : i + 2]) / usual
        for i in range(0, len(pairs), period)
    ]
    others = [mine / other for i, (mine, other) in enumerate(pairs) if i % period > 1]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    print(f"{options.model}, {options.recipe}; plain step {1e3 * usual:.0f} ms (median)")
    print(f"a sample adds {spread(samples)} steps, median and quartiles of {len(samples)}")
    print(f"recording every 50th step adds {spread([2 * x for x in samples])} %")
    print(f"a step that is not sampled takes {spread(others)} times a plain one")
    print(f"{rows} rows and {size / 1e3:.0f} kB a sample; {20 * size / 1e6:.1f} MB per 1,000 steps")


if __name__ == "__main__":
    main()
