"""What recording costs: time of a run at every 50th step, and bytes on disk.

    python benchmarks/record_overhead.py [--steps 100] [--every 50] [--recipe fp32]

Two runs of the default character model take turns, a block of `every` steps each, one of them
recorded: so both see the same load of the machine. Printed are the ratio of their times (median
over pairs of blocks, and the spread), the time of a sampled step over a plain one, and the size of
the file per 1,000 steps. Times are CPU time of the process, which other processes do not stretch.
"""

import argparse
import platform
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from unitscale import optim
from unitscale.models import CharLM
from unitscale.numerics import record
from unitscale.recipes import parse
from unitscale.train import TrainConfig
from unitscale.units import apply_recipe


class Subject:
    """A model in training on random bytes, and the times of its steps."""

    def __init__(self, recipe: str) -> None:
        torch.manual_seed(0)
        config = TrainConfig(recipe=recipe)
        self.model = CharLM(config.model_config)
        if parse(recipe).unit_scaled:
            self.optimizer: torch.optim.Optimizer = optim.AdamW(self.model, config.peak_lr)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), config.peak_lr)
        if parse(recipe).rounds:
            apply_recipe(self.model, recipe, inner="eager")
        self.ids = torch.randint(0, 256, (config.batch_size, config.sequence_length))
        self.times: list[float] = []

    def step(self) -> None:
        """One training step."""
        begin = time.process_time()
        self.optimizer.zero_grad()
        self.model(self.ids, self.ids).backward()
        self.optimizer.step()
        self.times.append(time.process_time() - begin)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--recipe", default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    plain, recorded = Subject(options.recipe), Subject(options.recipe)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "numerics.jsonl"
        with record(
            recorded.model, every=options.every, path=path, optimizer=recorded.optimizer
        ) as recorder:
            for subject in (plain, recorded):  # capture and warm-up
                for _ in range(options.every):
                    subject.step()
            rows = len(recorder.latest)
            size = path.stat().st_size
            for subject in (plain, recorded):
                subject.times.clear()
            # The steps of the two alternate, so that the machine treats both alike.
            for _ in range(options.steps):
                plain.step()
                recorded.step()
    blocks = [
        sum(recorded.times[i : i + options.every]) / sum(plain.times[i : i + options.every])
        for i in range(0, options.steps, options.every)
    ]
    sampled = [t for i, t in enumerate(recorded.times) if i % options.every in (0, 1)]
    extra = sum(sampled) / (options.steps / options.every) - 2 * median(plain.times)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    print(f"recipe {options.recipe}, {options.steps} steps, recorded every {options.every}")
    print(f"plain step {1e3 * median(plain.times):.0f} ms (median)")
    print(f"a sample adds {extra / median(plain.times):.2f} steps")
    print(
        f"recorded over plain {median(blocks):.4f} "
        f"({min(blocks):.4f} to {max(blocks):.4f} over {len(blocks)} blocks)"
    )
    print(f"{rows} rows a sample; {size / 1e6 * 1000 / options.every:.2f} MB per 1,000 steps")


if __name__ == "__main__":
    main()
