"""Does a large model, trained for a short time and compressed much, beat a small one?

    python experiments/train_then_compress.py --data tinyshakespeare.txt --out runs/large
    python experiments/train_then_compress.py --out runs/large --only budget --width 16 ...  a part
    python experiments/train_then_compress_report.py runs/large/rows.jsonl

A ladder of Llamas over bytes is trained at equal steps and at equal CPU time, in FP32 and in FP8
with units. Each is then quantized by `us.deploy.quantize`, pruned by `us.compress` at once and in
rounds, written as packed bits, read back and measured. A line of JSON a run; what is there stays,
and a run that was stopped goes on. Its folders are those of `unitscale sweep`.

After Li, Wallace et al., arXiv 2002.11794.
"""

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import train_then_compress_pack as pack
import unitscale as us
from unitscale.compress.mask import masked_layers
from unitscale.data import Corpus, fixed_batches, open_corpus, sample_windows
from unitscale.deploy.scheme import SCHEMES
from unitscale.sweep.job import point_of
from unitscale.sweep.point import Point
from unitscale.train.loop import to_inputs, train
from unitscale.train.trained import trained_model

Row = dict[str, Any]

BATCH, LENGTH, WINDOWS = 16, 64, 256
STEPS, RATE_STEPS = 500, 100
BUDGETS = (3, 12, 48)
"""CPU seconds of the training steps, in those of `Size.step_s`."""

ROUNDS, RECOVERY, ROUND_SPARSITY, GENTLE = 6, 20, 0.6, 0.1
"""Of pruning in rounds: rounds, steps after each, zeros at the end, and the rate's share of the
peak. (1 - 0.6)^(1/6) = 0.86: each round takes 14 % of what is left."""

BITS = (8, 6, 5, 4, 3)
SHARES = (0.3, 0.5, 0.6, 0.75)


@dataclass(frozen=True)
class Size:
    """One rung of the ladder, the rates that are tried for it, and what a step costs.

    `step_s` is CPU seconds, the median of 30 steps in FP32 on the machine of the page. Budgets are
    in these, so that the number of steps is the same wherever it is run; rows have the time as it
    was.
    """

    width: int
    depth: int
    heads: int
    rates: tuple[float, ...]
    step_s: float

    @property
    def options(self) -> dict[str, int]:
        return {"width": self.width, "depth": self.depth, "heads": self.heads}


LADDER = (
    Size(16, 2, 2, (0.01, 0.02, 0.04), 0.012),
    Size(32, 2, 2, (0.004, 0.008, 0.016, 0.032), 0.0145),
    Size(64, 3, 4, (0.002, 0.004, 0.008, 0.016), 0.035),
    Size(128, 4, 4, (0.002,), 0.108),  # not searched: half of that of half the width
)
BY_WIDTH = {size.width: size for size in LADDER}


@dataclass(frozen=True)
class Job:
    """One run: what part of the experiment it is of, and what it is."""

    part: str
    width: int
    seed: int = 0
    recipe: str = "fp32"
    budget: int | None = None
    rate: float | None = None


def jobs() -> list[Job]:
    """All runs, what matters most first."""
    small, every = (16, 32, 64), tuple(BY_WIDTH)
    found = [Job("rate", w, rate=rate) for w in small for rate in BY_WIDTH[w].rates]
    found += [Job("steps", w) for w in every]
    found += [Job("budget", w, budget=b) for b in BUDGETS[:2] for w in every]
    found += [Job("fp8", w, recipe="fp8") for w in small]
    found += [Job("steps", w, seed=1) for w in every]
    found += [Job("steps", w, seed=2) for w in small]
    found += [Job("budget", w, budget=BUDGETS[2]) for w in every]
    found += [Job("fp8", w, seed=seed, recipe="fp8") for seed in (1, 2) for w in small]
    found += [Job("budget", w, seed=1, budget=b) for b in BUDGETS[:2] for w in every]
    found += [Job("fp8", 128, recipe="fp8")]
    return found


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def is_of(row: Row, job: Job) -> bool:
    return all(row[name] == value for name, value in asdict(job).items())


def best_rate(rows: list[Row], width: int) -> float:
    """The rate of the lowest loss after the short runs of a size."""
    rates = BY_WIDTH[width].rates
    if len(rates) == 1:
        return rates[0]
    tried = [row for row in rows if (row["part"], row["width"]) == ("rate", width)]
    if {row["rate"] for row in tried} != set(rates):
        raise SystemExit(f"width {width} has no rate yet; run --only rate first")
    return min((r for r in tried if r["loss"] is not None), key=lambda row: row["loss"])["rate"]


def steps_of(job: Job) -> int:
    """How many steps: fixed, or what a budget of CPU time buys."""
    if job.part == "rate":
        return RATE_STEPS
    if job.budget is None:
        return STEPS
    return max(1, round(job.budget / BY_WIDTH[job.width].step_s))


def point(rows: list[Row], job: Job) -> Point:
    """The run of a job as a point of a sweep."""
    size, steps = BY_WIDTH[job.width], steps_of(job)
    values = {
        "recipe": job.recipe,
        "existing": "llama",
        "model": size.options,
        "steps": steps,
        "batch_size": BATCH,
        "sequence_length": LENGTH,
        "lr": job.rate or best_rate(rows, job.width),
        "seed": job.seed,
        "eval_windows": WINDOWS,
        "checkpoint_every": 250,
        "device": "cpu",
    }
    if job.part == "steps":
        values["eval_every"] = 100
    return point_of(values)


def run(job: Job, rows: list[Row], corpus: Corpus, out: Path) -> Row:
    """Train and compress; the row of it."""
    chosen = point(rows, job)
    times: list[tuple[int, float]] = []
    folder = chosen.folder(out)
    result = train(
        chosen.config,
        corpus,
        folder,
        resume=True,
        on_record=lambda record: times.append((record["step"], time.process_time())),
    )
    spent = [b - a for (first, a), (second, b) in pairwise(times) if second == first + 1]
    cost = median(spent) if spent else json.loads((folder / "cost.json").read_text())
    (folder / "cost.json").write_text(json.dumps(cost))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    row = asdict(job) | {
        "depth": chosen.options["depth"],
        "lr": chosen.config.peak_lr,
        "steps": chosen.config.steps,
        "tokens": chosen.config.steps * BATCH * LENGTH,
        "step_cpu_s": cost,
        "cpu_s": cost * chosen.config.steps,
        "diverged": result.diverged,
        "trained_loss": result.valid_loss,
        "curve": {str(r["step"]): r["valid_loss"] for r in log if r.get("valid_loss") is not None},
    }
    if job.part == "rate" or result.diverged:
        return row | {"loss": None if result.diverged else result.valid_loss}
    model, _ = trained_model(folder)
    if job.recipe != "fp32":
        us.unscale(model)
    model.eval()
    start = time.process_time()
    row["loss"] = valid_loss(model, corpus)
    row["eval_cpu_s"] = time.process_time() - start
    row["parameters"] = sum(p.numel() for p in model.parameters())
    row["matrix_parameters"] = sum(m.weight.numel() for m in pack.matrices(model).values())
    row["block_parameters"] = sum(
        m.weight.numel() for name, m in pack.matrices(model).items() if "layers" in name
    )
    file = out / f"{job.part}-{job.width}-{job.seed}-{job.budget}.safetensors"
    kept = folder / "compressed.jsonl"  # of a run that was stopped meanwhile
    row["compressed"] = read(kept)
    for each in variants(job)[len(row["compressed"]) :]:
        row["compressed"].append(compressed(model, corpus, file, *each))
        append(kept, row["compressed"][-1])
    if job.part == "steps" and job.width < 128:  # else it would take a third of all time
        recover(model, chosen, corpus, file, row)
    file.unlink(missing_ok=True)
    return row


def variants(job: Job) -> list[tuple[float, int | str]]:
    """What is zero and in how many bits the rest is; 16 is FP16."""
    found: list[tuple[float, int | str]] = [(0.0, pack.FULL), (0.0, pack.FP8)]
    found += [(0.0, bits) for bits in BITS] + [(share, pack.FULL) for share in SHARES]
    return [*found, (0.3, 4), (0.5, 8), (0.5, 4)]


def compressed(model: nn.Module, corpus: Corpus, file: Path, share: float, bits: int | str) -> Row:
    """Prune at once, quantize, write, read back, measure."""
    own = copy.deepcopy(model)
    masks = unmasked(us.compress.mask_smallest(own, share)) if share else {}
    found = written(own, masks, model, corpus, file, bits)
    return {"rounds": 1 if share else 0, "share": share, "bits": bits} | found


def unmasked(model: nn.Module) -> pack.Masks:
    """Make masks permanent, in place, since no masked layer is quantized or copied; the masks."""
    masks = {name: m.weight_mask.bool() for name, m in masked_layers(model).items()}
    us.compress.make_permanent(model)
    return masks


def written(
    pruned: nn.Module,
    masks: pack.Masks,
    plain: nn.Module,
    corpus: Corpus,
    file: Path,
    bits: int | str,
) -> Row:
    """Quantize a copy of a model, write it, and measure what the file holds.

    Raises:
        RuntimeError: the file holds other weights than `us.deploy` computes with.
    """
    own = copy.deepcopy(pruned)
    scheme = None
    if bits != pack.FULL:
        scheme = SCHEMES["fp8-weight"] if bits == pack.FP8 else pack.integers(int(bits))
        us.deploy.quantize(own, scheme, spare=())
    width = 8 if bits == pack.FP8 else int(bits)
    pack.save(own, masks, width, file)
    back = pack.restore(copy.deepcopy(plain), file, scheme)
    if scheme is not None:
        for name, layer in pack.matrices(own).items():
            if not torch.equal(layer.weight, back.get_submodule(name).weight):
                raise RuntimeError(
                    f"{name} in {file} is not what the quantized model computes with"
                )
    return {
        "loss": valid_loss(back, corpus),
        "counted_bytes": pack.counted_bytes(own, masks, width),
        "saved_bytes": pack.saved_bytes(file),
        "file_bytes": file.stat().st_size,
    }


@torch.no_grad()
def valid_loss(model: nn.Module, corpus: Corpus) -> float:
    """The mean loss over the windows that training validates with."""
    total = 0.0
    for windows in fixed_batches(corpus.valid, count=WINDOWS, length=LENGTH + 1, batch_size=BATCH):
        total += model(*to_inputs(windows)).item() * len(windows)
    return total / WINDOWS


def recover(model: nn.Module, chosen: Point, corpus: Corpus, file: Path, row: Row) -> None:
    """Prune in rounds with training between; train as much without rounds."""
    config, steps = chosen.config, ROUNDS * RECOVERY

    def trainer(own: nn.Module):
        optimizer = torch.optim.AdamW(
            own.parameters(), lr=config.peak_lr * GENTLE, betas=config.betas, weight_decay=0.0
        )

        def teach(first: int, count: int) -> None:
            own.train()
            for step in range(config.steps + first, config.steps + first + count):
                windows = sample_windows(
                    corpus.train,
                    seed=config.seed,
                    step=step,
                    batch_size=BATCH,
                    length=LENGTH + 1,
                )
                optimizer.zero_grad()
                own(*to_inputs(windows)).backward()
                optimizer.step()
            own.eval()

        return teach

    dense, once, rounds = (copy.deepcopy(model) for _ in range(3))
    trainer(dense)(0, steps)
    us.compress.mask_smallest(once, ROUND_SPARSITY)
    trainer(once)(0, steps)
    teach = trainer(rounds)
    us.compress.sparsify(
        rounds,
        ROUND_SPARSITY,
        rounds=ROUNDS,
        recover=lambda _, number: teach((number - 1) * RECOVERY, RECOVERY),
    )
    row["recovered"] = {
        "dense": valid_loss(dense, corpus),
        "at once": valid_loss(once, corpus),
        "in rounds": valid_loss(rounds, corpus),
    }
    masks = unmasked(rounds)
    for bits in (pack.FULL, 8, 4):
        found = written(rounds, masks, model, corpus, file, bits)
        row["compressed"].append({"rounds": ROUNDS, "share": ROUND_SPARSITY, "bits": bits} | found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a text; without it Python's own library")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=["rate", "steps", "budget", "fp8"])
    parser.add_argument("--width", nargs="*", type=int, choices=list(BY_WIDTH))
    parser.add_argument("--seed", nargs="*", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    corpus, file = open_corpus(options.data), options.out / "rows.jsonl"
    for job in jobs():
        rows = read(file)
        is_chosen = job.part in (options.only or [job.part])
        is_chosen &= job.width in (options.width or [job.width])
        is_chosen &= job.seed in (options.seed or [job.seed])
        if not is_chosen or any(is_of(r, job) for r in rows):
            continue
        torch.compiler.reset()
        row = run(job, rows, corpus, options.out)
        append(file, row)
        print(job, row["loss"], round(time.process_time()), "CPU s", flush=True)


if __name__ == "__main__":
    main()
