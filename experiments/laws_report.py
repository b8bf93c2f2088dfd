"""The figures of docs/laws.md, from two sweeps: recipes, and integers on the same model.

    unitscale sweep experiments/laws_grid.toml --data tinyshakespeare.txt --out runs/laws
    unitscale sweep experiments/laws_bits.toml --data tinyshakespeare.txt --out runs/laws-bits
    python experiments/laws_report.py runs/laws --bits runs/laws-bits --data tinyshakespeare.txt \
        --out runs/laws-report

Rounds the weights of every fp32 run after training to 2, 3 and 4 bits and measures the loss again,
writes all rows as one table (`runs.csv`, which `unitscale laws fit` reads), and fits it.
"""

import argparse
import csv
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import load_file

from rounded_lm import to_integers
from unitscale import laws
from unitscale.data import Corpus, open_corpus
from unitscale.data.window import fixed_batches
from unitscale.laws.draw import draw_fit, draw_plan
from unitscale.models import CharLM, CharLMConfig
from unitscale.report.atomic import write_text

POST_BITS = (2, 3, 4)
COLUMNS = ("N", "D", "loss", "recipe", "seed", "P_w", "P_a", "P_post", "loss_ptq")
HEADS, DEPTH, LENGTH = 2, 2, 64
WINDOWS, BATCH = 256, 16
SHORTEST = 40_000  # tokens: in 30 steps the loss still falls from ln 256 in no power law
BUDGET = 2e10

Cells = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--bits", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = read(args.recipes)
    table = [cells_of(run) for run in runs]
    if args.bits:
        table += [cells_of(run) for run in read(args.bits)]
    corpus = open_corpus(args.data)
    post = [
        cells_of(run) | {"P_post": bits, "loss_ptq": loss}
        for run in runs
        if run["recipe"] == "fp32" and run["loss"]
        for bits, loss in rounded_losses(args.recipes / "runs" / run["name"], run, corpus)
    ]
    write(args.out / "runs.csv", table)
    write(args.out / "post.csv", post)
    print(report(table, post, args.out))


def read(folder: Path) -> list[Cells]:
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def cells_of(run: Cells) -> Cells:
    """A run of a sweep as a row of one table; a model of integers has bits and no recipe."""
    weight, inputs = (int(run.get(f"model.{name}_bits") or 0) for name in ("weight", "input"))
    is_integer = "rounded_lm" in run["model"]
    return {
        "N": int(run["n_params"]) - int(run["n_embedding_params"]),
        "D": int(run["n_tokens"] or 0),
        "loss": run["loss"],
        "recipe": "" if is_integer else run["recipe"],
        "seed": run["seed"],
        "P_w": weight or "",
        "P_a": inputs or "",
        "diverged": run["diverged"],
    }


def rounded_losses(folder: Path, run: Cells, corpus: Corpus) -> Iterator[tuple[int, float]]:
    """The validation loss with the weights of linear layers rounded, by bits."""
    state = load_file(folder / "checkpoint.safetensors")
    own = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    width = int(run["width"])
    config = CharLMConfig(width=width, depth=DEPTH, heads=HEADS, context=LENGTH)
    for bits in (0, *POST_BITS):
        model = CharLM(config).eval()
        model.load_state_dict(own)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and bits:
                module.weight.data = to_integers(module.weight.data, bits, rows=True)
        loss = validate(model, corpus)
        if bits:
            yield bits, loss
        elif not math.isclose(loss, float(run["loss"]), rel_tol=1e-4):
            raise SystemExit(f"{folder} scored {run['loss']}, and its checkpoint scores {loss}")


@torch.no_grad()
def validate(model: CharLM, corpus: Corpus) -> float:
    total = 0.0
    for windows in fixed_batches(corpus.valid, count=WINDOWS, length=LENGTH + 1, batch_size=BATCH):
        ids = torch.from_numpy(windows.astype("int64"))
        total += model(ids[:, :-1], ids[:, 1:]).item() * len(windows)
    return total / WINDOWS


def write(path: Path, table: list[Cells]) -> None:
    lines = [",".join(COLUMNS)]
    lines += [",".join(str(row.get(name, "")) for name in COLUMNS) for row in table if row["loss"]]
    write_text(path, "\n".join(lines) + "\n")


def report(table: list[Cells], post: list[Cells], out: Path) -> str:
    """Everything that the page says, as text."""
    long = [row for row in table if row["D"] > SHORTEST]
    parts = [seed_spread(table)]
    for words, rows in (("all runs", table), ("without the shortest", long)):
        recipes = laws.rows_of(row for row in rows if row["recipe"])
        for tied in (True, False):
            law = laws.fit(recipes, tied=tied)
            parts.append(f"recipes, {words}, {'one exponent' if tied else 'two'}\n{law}")
            if tied and rows is long:
                law.save(out / "law.json")
                draw_fit(law, recipes.rows, out / "fit.png")
                draw_plan(law, out / "plan.png", flops=BUDGET)
                parts += [
                    str(law.plan(flops=BUDGET)),
                    str(law.plan(flops=BUDGET, hardware=["fp32", "fp8"])),
                ]
    if any(row["P_w"] for row in table):
        both = laws.rows_of(long)
        law = laws.fit(both)
        draw_fit(law, both.rows, out / "fit-bits.png")
        parts.append(f"recipes and integers\n{law}")
        for name in law.form.recipes:
            low, high = equivalent_interval(law, name)
            parts.append(f"{name}: {law.equivalent_bits(name)} bits, 90% {low} to {high}")
    if post:
        parts.append(post_table(post))
        rest = [row for row in long if row["recipe"] and row["recipe"] != "fp32"]
        rows = [*(row for row in post if row["D"] > SHORTEST), *rest]
        law = laws.fit(laws.rows_of(rows), noise=0.01)
        draw_plan(law, out / "post.png", flops=BUDGET)
        parts.append(f"with rounding after training\n{law}")
        parts += [
            f"D_crit at N = {size}, {bits} bits: {law.dcrit(size=size, post_bits=bits)}"
            for size in (10432, 33152, 115456, 246912)
            for bits in POST_BITS
        ]
    return "\n\n".join(parts)


def equivalent_interval(law: laws.Law, name: str) -> tuple[float, float]:
    """The 5th and the 95th of a hundred resampled fits' bits."""
    found = []
    for draw in law.draws:
        values = dict(zip(law.form.names, draw, strict=True))
        own = laws.Law(
            form=law.form,
            values={k: math.exp(v) if law.form.is_logarithm(k) else v for k, v in values.items()},
            scope=law.scope,
        )
        found.append(own.equivalent_bits(name) or math.inf)
    found.sort()
    return found[len(found) // 20], found[-1 - len(found) // 20]


def seed_spread(table: list[Cells]) -> str:
    """The spread of runs that differ in their seed alone."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in table:
        if row["loss"]:
            key = row["N"], row["D"], row["recipe"], row["P_w"], row["P_a"]
            groups.setdefault(key, []).append(float(row["loss"]))
    spreads = [(key, stdev(v) / mean(v), len(v)) for key, v in groups.items() if len(v) > 1]
    return "\n".join(f"{key}: sd {spread:.2%} of the loss, n={n}" for key, spread, n in spreads)


def post_table(post: list[Cells]) -> str:
    """The damage of rounding after training, by size, tokens and bits; the first seed."""
    lines = []
    for row in post:
        if int(row["seed"]) == 0:
            damage = float(row["loss_ptq"]) - float(row["loss"])
            lines.append(
                f"N {row['N']:>7} D {row['D']:>7} {row['P_post']} bits: +{damage:.4f} "
                f"-> {row['loss_ptq']:.4f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
