"""Which cut costs least: by importance, by magnitude or at random; and does distillation help?

    python experiments/compressed_models.py --out compress-runs            makes what is missing
    python experiments/compressed_models.py --out compress-runs --table    prints the table only
    python experiments/compressed_models.py --out compress-runs --search   ranks shapes, and masks

A small Llama over bytes is trained in FP32, cut to three shapes by three rankings, and trained on
for a few steps: with the labels, or against the large model, in FP32 and with the student in FP8
under units. Beside it the same shape from scratch. A line of JSON a run; what is there stays.

`--search`: does the ranking of shapes after a few steps of distillation hold after more of them?
And what does masking in rounds with training between save, against masking at once?
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import unitscale as us
from unitscale.compress.search import mean_loss
from unitscale.data import fixed_windows, open_corpus, sample_windows

TEACHER_STEPS, STEPS = 300, 40
BATCH, LENGTH = 8, 48
RATE, STUDENT_RATE = 3e-3, 2e-3
SHAPES = {
    "half the MLP": {"ffn": 64},
    "2/3 of the width, half the MLP": {"width": 32, "heads": 2, "kv_heads": 2, "ffn": 64},
    "2 of 3 layers": {"depth": 2},
}
RANKINGS = ("importance", "magnitude", "random", "worst")
LOSSES = ("none", "labels", "teacher")
SEEDS = (0, 1, 2)
CORPUS = open_corpus(None)


def model_of(seed: int) -> nn.Module:
    """The large model, untrained."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=16,
            intermediate_size=128,
            max_position_embeddings=LENGTH,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def batch_of(windows) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(windows.astype("int64"))
    return {"input_ids": ids, "labels": ids}


def batches(seed: int, first: int, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Training text, a function of the seed and the step."""
    for step in range(first, first + count):
        yield batch_of(
            sample_windows(CORPUS.train, seed=seed, step=step, batch_size=BATCH, length=LENGTH)
        )


VALID = [
    batch_of(part)
    for part in fixed_windows(CORPUS.valid, count=128, length=LENGTH).reshape(2, 64, LENGTH)
]


def fit(model: nn.Module, seed: int, first: int, steps: int, rate: float, loss_of) -> None:
    """Train by AdamW with a short warm-up and a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    for batch in batches(seed, first, steps):
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()
        schedule.step()


def label_loss(model: nn.Module):
    def loss(batch):
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
        return nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch["labels"][:, 1:].flatten()
        )

    return loss


def teacher_of(out: Path, seed: int) -> nn.Module:
    """The trained large model of a seed."""
    folder, model = out / f"teacher-{seed}", model_of(seed)
    if not folder.exists():
        fit(model, seed, 0, TEACHER_STEPS, RATE, label_loss(model))
        model.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def scores(teacher: nn.Module, ranking: str, seed: int) -> "us.compress.Importance":
    if ranking == "random":
        return us.compress.drawn(teacher, seed)
    if ranking == "magnitude":
        return us.compress.magnitude(teacher)
    found = us.compress.measure(teacher, list(batches(seed + 50, 0, 8)))
    return found if ranking == "importance" else found.reversed()


def make(out: Path, rows: Path, recipe: str, seed: int, shape: str) -> None:
    """All runs of one recipe, seed and shape that are missing."""
    done = {key(row) for row in read(rows)}

    def wanted(ranking: str, loss: str) -> bool:
        if ranking == "worst" and loss != "none":
            return False
        if recipe != "fp32" and (ranking not in ("importance", "random") or loss == "none"):
            return False
        return (recipe, seed, shape, ranking, loss) not in done

    def write(ranking: str, loss: str, student: nn.Module) -> None:
        row = {
            "recipe": recipe,
            "seed": seed,
            "shape": shape,
            "ranking": ranking,
            "loss": loss,
            "parameters": sum(p.numel() for p in student.parameters()),
            "valid": mean_loss(student, VALID),
        }
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)

    teacher = teacher_of(out, seed)
    if (recipe, seed, "the large model", "", "none") not in done and recipe == "fp32":
        row = {"recipe": recipe, "seed": seed, "shape": "the large model", "ranking": ""}
        row |= {"loss": "none", "parameters": sum(p.numel() for p in teacher.parameters())}
        with rows.open("a") as file:
            file.write(json.dumps(row | {"valid": mean_loss(teacher, VALID)}) + "\n")
    for ranking in (*RANKINGS, "scratch"):
        for loss in LOSSES:
            if not wanted(ranking, loss) or (ranking == "scratch" and loss != "labels"):
                continue
            given = "random" if ranking == "scratch" else ranking
            made = us.compress.plan(
                teacher, importance=scores(teacher, given, seed), **SHAPES[shape]
            )
            student = us.compress.apply(teacher, made)
            if ranking == "scratch":
                torch.manual_seed(seed + 7)
                student = type(student)(student.config)
            torch.compiler.reset()
            if recipe != "fp32":
                us.unit_scale(student, recipe)
            student.train()
            # Text that the large model has not seen: a student sees as much of it as any other.
            if loss == "labels":
                fit(student, seed, TEACHER_STEPS, STEPS, STUDENT_RATE, label_loss(student))
            elif loss == "teacher":
                against = us.compress.Distillation(teacher, student, made)
                fit(student, seed, TEACHER_STEPS, STEPS, STUDENT_RATE, against)
            write(ranking, loss, student)


BUDGET, SHORT, LONG, TRIED = 0.6, 60, 300, 8
"""Of the search: the share of parameters, steps of both trainings, and shapes."""

SPARSITY, ROUNDS, RECOVERY = 0.6, 4, 30
"""Of masks: the share of zeros, rounds, and steps of training after each."""


def search(out: Path, rows: Path) -> None:
    """Rank shapes of one budget by short and by long training; mask in rounds and at once."""
    done = {(row["what"], row["seed"], row["shape"], row["steps"]) for row in read(rows)}

    def write(what: str, seed: int, shape: str, steps: int, valid: float) -> None:
        row = {"what": what, "seed": seed, "shape": shape, "steps": steps, "valid": valid}
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)

    for seed in SEEDS:
        if ("masks in rounds", seed, "", RECOVERY) in done:
            continue
        teacher, once, rounds = (teacher_of(out, seed) for _ in range(3))
        write("masks: dense", seed, "", 0, mean_loss(teacher, VALID))
        us.compress.mask_smallest(once, SPARSITY)
        write("masks at once", seed, "", 0, mean_loss(once, VALID))

        def recover(model: nn.Module, number: int, seed: int = seed) -> None:
            first = TEACHER_STEPS + number * RECOVERY
            fit(model, seed, first, RECOVERY, STUDENT_RATE, label_loss(model))

        us.compress.sparsify(rounds, SPARSITY, rounds=ROUNDS, recover=recover)
        write("masks in rounds", seed, "", RECOVERY, mean_loss(rounds, VALID))
    seed = SEEDS[0]
    teacher = teacher_of(out, seed)
    found = us.compress.candidates(
        teacher, round(BUDGET * sum(p.numel() for p in teacher.parameters()))
    )
    chosen = [found[i * (len(found) - 1) // (TRIED - 1)] for i in range(TRIED)]
    for shape in dict.fromkeys(chosen):
        made = us.compress.plan(teacher, shape, importance=scores(teacher, "importance", seed))
        for steps in (SHORT, LONG):
            if ("search", seed, str(shape), steps) in done:
                continue
            student = us.compress.apply(teacher, made).train()
            against = us.compress.Distillation(teacher, student, made)
            fit(student, seed, TEACHER_STEPS, steps, STUDENT_RATE, against)
            write("search", seed, str(shape), steps, mean_loss(student, VALID))


def searched(rows: Path) -> str:
    """Spearman's correlation of both rankings, and the damage of masks."""
    found = read(rows)

    def values(what: str) -> list[float]:
        return [row["valid"] for row in found if row["what"] == what]

    by_steps = {
        steps: {
            r["shape"]: r["valid"] for r in found if (r["what"], r["steps"]) == ("search", steps)
        }
        for steps in (SHORT, LONG)
    }
    shapes = [shape for shape in by_steps[SHORT] if shape in by_steps[LONG]]
    ranks = [
        {shape: place for place, shape in enumerate(sorted(shapes, key=by_steps[steps].get))}
        for steps in (SHORT, LONG)
    ]
    n = len(shapes)
    apart = sum((ranks[0][shape] - ranks[1][shape]) ** 2 for shape in shapes)
    correlation = 1 - 6 * apart / (n * (n * n - 1)) if n > 1 else math.nan
    lines = [f"Spearman's correlation of {n} shapes, {SHORT} and {LONG} steps: {correlation:.2f}"]
    lines += [f"  {s}: {by_steps[SHORT][s]:.3f}, {by_steps[LONG][s]:.3f}" for s in shapes]
    dense = values("masks: dense")
    for what in ("masks at once", "masks in rounds"):
        damage = [valid - own for valid, own in zip(values(what), dense, strict=False)]
        if damage:
            lines.append(f"{what}, {SPARSITY:.0%} zero: damage {shown(damage)}")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    """A mean, the standard deviation of single runs, and their number."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread} (n={len(values)})"


def read(rows: Path) -> list[dict]:
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def key(row: dict) -> tuple:
    return row["recipe"], row["seed"], row["shape"], row["ranking"], row["loss"]


def table(rows: Path) -> str:
    """Validation losses in nats a byte, as Markdown: means over seeds with their deviation."""
    found: dict[tuple, list[dict]] = {}
    for row in read(rows):
        found.setdefault((row["shape"], row["ranking"], row["recipe"], row["loss"]), []).append(row)

    def cell(*at: str) -> str:
        values = [row["valid"] for row in found.get(at, [])]
        return shown(values) if values else "–"

    columns = [("fp32", "none"), ("fp32", "labels"), ("fp32", "teacher")]
    columns += [("fp8", "labels"), ("fp8", "teacher")]
    lines = ["| | parameters | " + " | ".join(f"{r}: {loss}" for r, loss in columns) + " |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for shape in ("the large model", *SHAPES):
        for ranking in ("", *RANKINGS, "scratch"):
            own = [
                row for at, rows_ in found.items() if at[:2] == (shape, ranking) for row in rows_
            ]
            if own:
                cells = " | ".join(cell(shape, ranking, *column) for column in columns)
                name = f"{shape}, {ranking}" if ranking else shape
                lines.append(f"| {name} | {own[0]['parameters']:,} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("compress-runs"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--search", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.search:
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.table:
            search(options.out, options.out / "search.jsonl")
        print(searched(options.out / "search.jsonl"))
        return
    rows = options.out / "rows.jsonl"
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        order = list(SHAPES)
        first, middle, last = order
        for seed in SEEDS:
            make(options.out, rows, "fp32", seed, middle)
        make(options.out, rows, "fp8", SEEDS[0], middle)
        for shape in (first, last):
            for seed in SEEDS:
                make(options.out, rows, "fp32", seed, shape)
        for seed in SEEDS[1:]:
            make(options.out, rows, "fp8", seed, middle)
        for shape in (first, last):
            for seed in SEEDS:
                make(options.out, rows, "fp8", seed, shape)
    print(table(rows))


if __name__ == "__main__":
    main()
