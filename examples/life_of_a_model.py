"""One model's whole life in eight bits, and what each step of it cost and gained.

    python examples/life_of_a_model.py                            two minutes of one core
    python examples/life_of_a_model.py --data my.txt --steps 400 --out runs/life

A small Llama over bytes is trained in FP8, grown, trained on, pruned, distilled, quantized and
exported. Its units, one power of two for each tensor, go along from the first step to the file that
a server loads: nothing is calibrated, and no step falls back to FP32 in silence.

Each step takes the folder of the one before and leaves a folder of its own, which is whole or
absent. Stop the script when you like: called again it reads back what is done and goes on.

Beside this life the same one is lived in FP32, and for most steps something else is tried with the
same compute. What did not pay is in the report as well: report.md and report.json.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from life_report import Row, check, claim, failed, finished, page, row_in, write
from life_training import (
    BATCH,
    HEAD,
    LENGTH,
    LINEAR,
    RECIPE,
    Life,
    adamw,
    came_along,
    forward_work,
    kept_in,
    kept_of,
    learn,
    opened,
    read_back,
    row_of,
)
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import unitscale as us
from unitscale.data import open_corpus

# 1. Train. From here on the model has units: each tensor is held at an RMS of about 1.


def train(life: Life, _: Path, folder: Path) -> Row:
    """A small model, from nothing."""
    model = life.new(1)
    optimizer = adamw(model)
    before = life.loss(model)
    moved = learn(model, optimizer, life.batches(1, life.steps), life.steps)
    row = kept_in(life, folder, model, optimizer, before, life.steps)
    row["checks"].append(moved)
    return row


# 2. Grow. The large model computes what the small one did; its units are not measured anew.


def grow(life: Life, source: Path, folder: Path) -> Row:
    """Twice the width and twice the depth."""
    small, old = opened(source)
    before = life.loss(small)
    plan = us.growth.plan(small, width=2 * life.width, depth=2 * life.depth, seed=life.seed)
    large = us.growth.apply(small, plan)
    carried = life.units(large)
    optimizer = adamw(large)
    us.growth.grow_optimizer(old, optimizer, small=small, grown=large, plan=plan)
    proof = us.growth.verify(small, large, next(life.batches(2, 1)))
    row = kept_in(life, folder, large, optimizer, before, 0)
    found, count = len(optimizer.state), len(list(large.parameters()))
    same = f"outputs up to {proof.largest:.2g} differ by {proof.difference:.1e}"
    row["checks"] += [
        read_back(source, before),
        check("the function is that of the small model", same, proof.preserved),
        check("moments grew along", f"{found} of {count} parameters", found == count),
        *came_along(life, carried, row),
    ]
    row["instead"] = {"new weights of that shape": lambda: life.loss(life.new(2))}
    return row


# 3. Train on. The first step is at units that were carried over, the second measures.


def train_on(life: Life, source: Path, folder: Path) -> Row:
    """The large model, for as many steps as the small one."""
    model, optimizer = opened(source)
    before = life.loss(model)
    moved = learn(model, optimizer, life.batches(2, life.steps), life.steps)
    row = kept_in(life, folder, model, optimizer, before, life.steps)
    row["checks"] += [read_back(source, before), moved]
    row["units"] |= kept_of(source, folder)
    return row


# 4. Prune. What matters is measured in forward passes; what matters least is cut out.


def half(life: Life, large: nn.Module, importance: us.compress.Importance | None = None) -> Any:
    """A plan to keep half of the parameters and the whole depth; the same whenever it is made."""
    importance = importance or us.compress.measure(large, life.batches(3, 8))
    parameters = sum(p.numel() for p in large.parameters()) // 2
    return us.compress.plan(large, importance=importance, parameters=parameters)


def prune(life: Life, source: Path, folder: Path) -> Row:
    """Half of the parameters."""
    large, old = opened(source)
    before = life.loss(large)
    plan = half(life, large)
    small = us.compress.apply(large, plan)
    carried = life.units(small)
    optimizer = adamw(small)
    us.compress.prune_optimizer(old, optimizer, model=large, pruned=small, plan=plan)
    row = kept_in(life, folder, small, optimizer, before, 0)
    row["checks"] += [read_back(source, before), *came_along(life, carried, row)]
    drawn = half(life, large, us.compress.drawn(large, life.seed))
    row["instead"] = {"cut by chance": lambda: life.loss(us.compress.apply(large, drawn))}
    return row


# 5. Distil. Teacher and student each run in the recipe; the loss between them is in float32.


def distil(life: Life, source: Path, folder: Path) -> Row:
    """The pruned model learns what the large one gives, and the text; for 2/3 of the steps."""
    steps = max(1, 2 * life.steps // 3)
    teacher, _ = opened(source.with_name("train on"))
    theirs = [p.detach().clone() for p in teacher.parameters()]
    student, optimizer = opened(source)
    before = life.loss(student)
    loss = us.compress.Distillation(teacher, student, half(life, teacher), cross_entropy=1.0)
    moved = learn(student, optimizer, life.batches(4, steps), steps, loss)
    row = kept_in(life, folder, student, optimizer, before, steps)
    row["work"] += forward_work(teacher, steps)
    stays = all(map(torch.equal, theirs, teacher.parameters()))
    row["checks"] += [
        read_back(source, before),
        moved,
        check("the teacher is what it was", "to the bit", stays),
    ]
    row["units"] |= kept_of(source, folder)
    return row


# 6. Quantize. Inputs are rounded at the units that training ended with; nothing is calibrated.


def quantize(life: Life, source: Path, folder: Path) -> Row:
    """One byte for each weight, and a scale for each of their rows."""
    model, _ = opened(source)
    before, parameters = life.loss(model), row_in(source)["parameters"]
    units = us.units.layer_units(model) if life.recipe else []
    windows = [{"input_ids": one["input_ids"]} for one in life.batches(3, 8)]
    us.deploy.quantize(model, "fp8", calibration=None if life.recipe else windows)
    us.deploy.export(model, folder / "model", "safetensors")
    row = row_of(life, model, folder, before, 0)
    state, linear = model.state_dict(), LINEAR * model.config.num_hidden_layers
    codes = [x for name, x in state.items() if name.endswith(".weight_codes") and x.itemsize == 1]
    share = f"{len(codes)} of {linear}"
    row |= {"recipe": "fp8", "rounded": share, "parameters": parameters}
    row["checks"] += [
        read_back(source, before),
        check("linear layers with a byte for a weight", share, len(codes) == linear),
    ]
    if life.recipe:
        held = [(state[f"{unit.path}.input_scale"].item(), unit.input_log2) for unit in units]
        same = sum(log2 is not None and scale == 2.0**log2 for scale, log2 in held)
        share = f"{same} of {linear}"
        row["units"] = {"in force": linear, "kept": same}
        row["checks"].append(check("scales of inputs are units", share, same == linear))
        other = us.unscale(opened(source)[0])
        row["instead"] = {
            "calibrated on 64 windows": lambda: life.loss(
                us.deploy.quantize(other, "fp8", calibration=windows)
            )
        }
    return row


# 7. Export, and read it as a server would: with a loader that knows nothing of this library.


def export(life: Life, source: Path, folder: Path) -> Row:
    """A folder for transformers, vLLM and SGLang."""
    distilled = source.with_name("distil")
    plain = LlamaForCausalLM.from_pretrained(distilled)
    model = us.deploy.load(
        source / "model", LlamaForCausalLM(LlamaConfig.from_pretrained(distilled))
    )
    before = life.loss(model)
    us.deploy.export(model, folder / "model")
    us.deploy.verify(folder / "model")
    stock = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids = next(life.batches(5, 1))["input_ids"]
    with torch.no_grad():
        ours, theirs, exact = (one.eval()(ids).logits for one in (model, stock, plain))
    row = row_of(life, stock, folder, before, 0)
    row |= {name: row_in(source)[name] for name in ("recipe", "rounded", "parameters", "units")}
    far = f"by up to {(exact - theirs).abs().max().item():.2g}"
    row["checks"] += [
        read_back(source, before),
        check("a stock loader gives our logits", "to the bit", torch.equal(ours, theirs)),
        check("rounding changes the logits", far, not torch.equal(exact, theirs)),
    ]
    return row


LIFE = {
    "train": train,
    "grow": grow,
    "train on": train_on,
    "prune": prune,
    "distil": distil,
    "quantize": quantize,
    "export": export,
}


def lived(life: Life) -> dict[str, Row]:
    """The rows of all steps; of those that are done before they are read back."""
    rows: dict[str, Row] = {}
    source = life.root
    for name, step in LIFE.items():
        folder = life.root / name
        rows[name] = finished(folder, partial(step, life, source))
        source = folder
    return rows


# What else could have been done with as many multiply-adds?


def from_scratch(life: Life, like: Path, work: float) -> Callable[[Path], Row]:
    """New weights of the shape of a step, trained for so many multiply-adds."""

    def train(folder: Path) -> Row:
        torch.manual_seed(life.seed)
        model = life.scaled(LlamaForCausalLM(LlamaConfig.from_pretrained(like)))
        return trained_for(life, model, adamw(model), work, 1, folder)

    return train


def small_longer(life: Life, work: float) -> Callable[[Path], Row]:
    """The small model not grown, trained on for so many multiply-adds."""

    def train(folder: Path) -> Row:
        model, optimizer = opened(life.root / "train")
        for group in optimizer.param_groups:
            group["initial_lr"] = adamw(model).defaults["lr"]
        return trained_for(life, model, optimizer, work, 2, folder)

    return train


def trained_for(
    life: Life,
    model: Any,
    optimizer: torch.optim.Optimizer,
    work: float,
    phase: int,
    folder: Path,
) -> Row:
    """A model trained for so many multiply-adds, three for each of a forward pass."""
    steps = max(1, round(work / (3 * forward_work(model, 1))))
    before = life.loss(model)
    learn(model, optimizer, life.batches(phase, steps), steps)
    return row_of(life, model, folder, before, steps)


def try_instead(life: Life, rows: dict[str, Row]) -> None:
    """Add to the rows what else was tried."""
    work = {name: row["work"] for name, row in rows.items()}
    large, small = life.root / "grow", life.root / "prune"
    until = work["train"] + work["train on"]
    tries = (
        ("train on", "the large shape from scratch", from_scratch(life, large, until)),
        ("train on", "the small one trained on", small_longer(life, work["train on"])),
        ("distil", "its shape from scratch", from_scratch(life, small, work["distil"])),
        (
            "distil",
            "its shape from scratch, a whole life",
            from_scratch(life, small, until + work["distil"]),
        ),
    )
    for step, what, make in tries:
        row = finished(life.root / "instead" / what.replace(",", ""), make)
        found = {"loss": row["after"], "tokens": row["tokens"], "cpu_s": row["cpu_s"]}
        rows[step]["instead"][what] = found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="a text file; without it Python's standard library")
    parser.add_argument("--out", type=Path, default=Path("runs/life"), help="folder of the steps")
    parser.add_argument("--steps", type=int, default=80, help="of each of the first two trainings")
    parser.add_argument("--width", type=int, default=32, help=f"of the small one: heads of {HEAD}")
    parser.add_argument("--depth", type=int, default=2, help="of the small one")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    out, data = given.pop("out"), given.pop("data")
    for name, least in (("steps", 1), ("width", HEAD), ("depth", 1), ("seed", 0)):
        if given[name] < least or (name == "width" and given[name] % HEAD):
            multiple = f" and a multiple of {HEAD}" if name == "width" else ""
            parser.error(f"--{name} is {given[name]}; expected at least {least}{multiple}")
    try:
        life = Life(root=out, corpus=open_corpus(data), **given)
        life.corpus.require(batch_size=BATCH, length=LENGTH)
        claim(out, life.settings())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        rows, fp32 = lived(life), lived(replace(life, root=out / "fp32", recipe=None))
        try_instead(life, rows)
    except KeyboardInterrupt:
        print(f"\nstopped; the same call goes on at the step that was not done, in {out}")
        return 130
    about = {
        **life.settings(),
        "data": life.corpus.name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    write(out / "report.json", json.dumps({**about, "life": rows, "fp32": fp32}, indent=1))
    text = page(f"A life in {RECIPE}, seed {life.seed}, on {life.corpus.name}", rows, fp32)
    write(out / "report.md", text)
    print(f"\n{text}\nAlso in {out}/report.md and report.json.")
    for line in failed(rows):
        print(f"does not hold: {line}", file=sys.stderr)
    return 1 if failed(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
