"""One model's whole life in eight bits, and what each step of it cost and gained.

    python examples/life_of_a_model.py                            two minutes of one core
    python examples/life_of_a_model.py --data my.txt --steps 400 --out runs/life

A small Llama over bytes is trained in FP8, grown, trained on, pruned, distilled, quantized and
exported. Its units, one power of two for each tensor, are measured once and go along to the end:
nothing is calibrated, and no step falls back to FP32 in silence.

Each step takes the folder of the one before and leaves a folder of its own, which is whole or
absent. Stop the script when you like: called again it reads back what is done and goes on.

Beside this life the same one is lived in FP32, and for each step something else is tried with the
same compute. What did not pay is in the report as well: report.md and report.json.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from life_report import Row, check, failed, finished, page, row_in, write
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import unitscale as us
from unitscale.data import Corpus, fixed_batches, open_corpus, sample_windows

RECIPE = "fp8-serve"
"""Rounds what servers round: so the model is trained in the numbers that it will be served in."""

BATCH, LENGTH, HEAD, LR = 8, 64, 16, 4e-3
LINEAR = 7
"""Linear layers in each layer of a Llama; the recipe rounds them all, and not the head."""

UNITS, OPTIMIZER, MODEL = "units.json", "optimizer.pt", "model"

Check = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a life is made of; a folder holds one."""

    steps: int
    width: int
    depth: int
    seed: int
    text: str
    recipe: str = RECIPE


@dataclass(frozen=True, kw_only=True)
class Life:
    """One life: where its steps are, and whether it has a recipe or is lived in FP32."""

    root: Path
    settings: Settings
    corpus: Corpus
    recipe: str | None = RECIPE

    def batches(self, phase: int, steps: int) -> Iterator[dict[str, torch.Tensor]]:
        """The text of a phase, the same in every life of a seed."""
        seed = 100 * self.settings.seed + phase
        for step in range(steps):
            yield batch_of(
                sample_windows(
                    self.corpus.train, seed=seed, step=step, batch_size=BATCH, length=LENGTH
                )
            )

    def loss(self, model: nn.Module) -> float:
        """The mean loss over 128 windows of text held out, in the numerics that the model has."""
        model.eval()
        windows = fixed_batches(self.corpus.valid, count=128, length=LENGTH, batch_size=BATCH)
        with torch.no_grad():
            losses = [model(**batch_of(own)).loss.item() for own in windows]
        return math.fsum(losses) / len(losses)


# 1. Train. From here on the model has units: each tensor is held at an RMS of about 1.


def train(life: Life, _: Path, folder: Path) -> Row:
    """A small model, from nothing."""
    model = scaled(life, llama(life.settings, life.settings.width, life.settings.depth))
    optimizer = adamw(model)
    before = life.loss(model)
    moved = learn(model, optimizer, life.batches(1, life.settings.steps), life.settings.steps)
    row = row_of(life, model, optimizer, folder, before, life.settings.steps)
    row["checks"] += [moved, *in_force(life, model)]
    row["units"] = {"in force": units_in(folder)}
    return row


# 2. Grow. The large model computes what the small one did; its units are not measured anew.


def grow(life: Life, source: Path, folder: Path) -> Row:
    """Twice the width and twice the depth."""
    small, old = opened(source)
    before = life.loss(small)
    plan = us.growth.plan(
        small, width=2 * life.settings.width, depth=2 * life.settings.depth, seed=life.settings.seed
    )
    large = us.growth.apply(small, plan)
    carried = us.summary(large).units if life.recipe else 0  # before it has made a call
    optimizer = adamw(large)
    us.growth.grow_optimizer(old, optimizer, small=small, grown=large, plan=plan)
    proof = us.growth.verify(small, large, next(life.batches(2, 1)))
    row = row_of(life, large, optimizer, folder, before, 0)
    moments = len(optimizer.state)
    row["checks"] += [
        read_back(source, before),
        check(
            "the function is that of the small model",
            f"outputs differ by {proof.difference:.1e} of {proof.largest:.2g}",
            proof.preserved,
        ),
        check(
            "moments grew along",
            f"{moments} of {len(list(large.parameters()))} parameters",
            moments == len(list(large.parameters())),
        ),
        *came_along(life, carried, folder),
        *in_force(life, large),
    ]
    row["units"] = {"in force": units_in(folder), "carried over": carried}
    new = scaled(life, llama(life.settings, 2 * life.settings.width, 2 * life.settings.depth))
    row["instead"] = {"new weights of that shape": {"loss": life.loss(new)}}
    return row


# 3. Train on. The first step is at units that were carried over, the second measures.


def train_on(life: Life, source: Path, folder: Path) -> Row:
    """The large model, for as many steps as the small one."""
    model, optimizer = opened(source)
    before = life.loss(model)
    moved = learn(model, optimizer, life.batches(2, life.settings.steps), life.settings.steps)
    row = row_of(life, model, optimizer, folder, before, life.settings.steps)
    row["checks"] += [read_back(source, before), moved, *in_force(life, model)]
    row["units"] = kept(source, folder)
    return row


# 4. Prune. What matters is measured in forward passes; what matters least is cut out.


def pruning(life: Life, large: nn.Module, importance: Any = None) -> Any:
    """A plan to keep half of the parameters, in every layer; the same whenever it is made."""
    half = sum(p.numel() for p in large.parameters()) // 2
    importance = importance or us.compress.measure(large, list(life.batches(3, 8)))
    return us.compress.plan(large, importance=importance, parameters=half)


def prune(life: Life, source: Path, folder: Path) -> Row:
    """Half of the parameters."""
    large, old = opened(source)
    before = life.loss(large)
    plan = pruning(life, large)
    small = us.compress.apply(large, plan)
    carried = us.summary(small).units if life.recipe else 0
    optimizer = adamw(small)
    us.compress.prune_optimizer(old, optimizer, model=large, pruned=small, plan=plan)
    row = row_of(life, small, optimizer, folder, before, 0)
    row["checks"] += [
        read_back(source, before),
        *came_along(life, carried, folder),
        *in_force(life, small),
    ]
    row["units"] = {"in force": units_in(folder), "carried over": carried}
    by_chance = pruning(life, large, us.compress.drawn(large, life.settings.seed))
    other = us.compress.apply(large, by_chance)
    row["instead"] = {"cut by chance": {"loss": life.loss(other)}}
    return row


# 5. Distil. Teacher and student each run in the recipe; the loss between them is in float32.


def distil(life: Life, source: Path, folder: Path) -> Row:
    """The pruned model learns to give what the large one gives, for 2/3 of the steps."""
    steps = max(1, 2 * life.settings.steps // 3)
    teacher, _ = opened(source.with_name("train on"))
    student, optimizer = opened(source)
    before = life.loss(student)
    distillation = us.compress.Distillation(
        teacher, student, pruning(life, teacher), cross_entropy=1.0
    )
    theirs = [p.detach().clone() for p in teacher.parameters()]
    moved = learn(student, optimizer, life.batches(4, steps), steps, distillation)
    row = row_of(life, student, optimizer, folder, before, steps)
    row["work"] += forward_work(teacher, steps)
    stays = all(map(torch.equal, theirs, teacher.parameters()))
    row["checks"] += [
        read_back(source, before),
        moved,
        check("the teacher is as it was", "to the bit", stays),
        *in_force(life, student),
    ]
    row["units"] = kept(source, folder)
    return row


# 6. Quantize. Inputs are rounded at the units that training ended with; nothing is calibrated.


def quantize(life: Life, source: Path, folder: Path) -> Row:
    """One byte for each weight, a scale for each of their rows."""
    model, _ = opened(source)
    before, depth = life.loss(model), model.config.num_hidden_layers
    calibration = [{"input_ids": one["input_ids"]} for one in life.batches(3, 8)]
    units = us.units.layer_units(model) if life.recipe else []
    us.deploy.quantize(model, "fp8", calibration=None if life.recipe else calibration)
    us.deploy.export(model, folder / MODEL, "safetensors")
    found = us.deploy.quantization(model)
    row = row_of(life, model, None, folder, before, 0, parameters=row_in(source)["parameters"])
    stored = {name: x for name, x in model.state_dict().items() if name.endswith("weight_codes")}
    row["rounded"] = f"{len(found.rows)} of {LINEAR * depth}"
    row["checks"] += [
        read_back(source, before),
        check(
            "linear layers but the head hold one byte a weight",
            f"{len(stored)} of {LINEAR * depth}",
            len(stored) == LINEAR * depth and all(x.itemsize == 1 for x in stored.values()),
        ),
    ]
    if life.recipe:
        held = {name: x.item() for name, x in model.state_dict().items() if "input_scale" in name}
        own = {f"{unit.path}.input_scale": 2.0**unit.input_log2 for unit in units}
        row["checks"].append(
            check("scales of inputs are units of training", f"{len(held)} scales", held == own)
        )
        row["units"] = {
            "in force": len(held),
            "kept": sum(own.get(n) == x for n, x in held.items()),
        }
        other = us.deploy.quantize(us.unscale(opened(source)[0]), "fp8", calibration=calibration)
        row["instead"] = {"calibrated on 64 windows": {"loss": life.loss(other)}}
    return row


# 7. Export, and read it as a server would: with a loader that knows nothing of this library.


def export(life: Life, source: Path, folder: Path) -> Row:
    """A folder for transformers, vLLM and SGLang."""
    config = LlamaConfig.from_pretrained(source.with_name("distil"))
    model = us.deploy.load(source / MODEL, LlamaForCausalLM(config))
    before = life.loss(model)
    us.deploy.export(model, folder / MODEL)
    us.deploy.verify(folder / MODEL)
    stock = AutoModelForCausalLM.from_pretrained(folder / MODEL)
    plain = LlamaForCausalLM.from_pretrained(source.with_name("distil"))
    ids = next(life.batches(5, 1))["input_ids"]
    with torch.no_grad():
        ours, theirs, exact = (one.eval()(ids).logits for one in (model, stock, plain))
    row = row_of(life, stock, None, folder, before, 0, parameters=row_in(source)["parameters"])
    row["rounded"] = row_in(source)["rounded"]
    row["checks"] += [
        read_back(source, before),
        check("a stock loader gives our logits", "to the bit on a CPU", torch.equal(ours, theirs)),
        check(
            "and not those of the weights before rounding",
            f"differ by {(exact - theirs).abs().max().item():.2g}",
            not torch.equal(exact, theirs),
        ),
    ]
    row["units"] = {}
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


# What else could have been done with the same compute, in multiply-adds.


def instead(life: Life, rows: dict[str, Row]) -> None:
    """Add to the rows what the alternatives gave."""
    root = life.root / "instead"
    spent = [rows[name]["work"] for name in LIFE]

    def scratch(like: Path, work: float, phase: int) -> Callable[[Path], Row]:
        def make(folder: Path) -> Row:
            torch.manual_seed(life.settings.seed + 1)
            model = scaled(life, LlamaForCausalLM(LlamaConfig.from_pretrained(like)))
            return trained(model, adamw(model), folder, work, phase)

        return make

    def longer(folder: Path) -> Row:
        model, optimizer = opened(life.root / "train")
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = LR
        return trained(model, optimizer, folder, spent[2], 2)

    def trained(
        model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, work: float, phase: int
    ) -> Row:
        steps = max(1, round(work / (3 * forward_work(model, 1))))
        before = life.loss(model)
        learn(model, optimizer, life.batches(phase, steps), steps)
        return row_of(life, model, optimizer, folder, before, steps)

    others = {
        "train on": {
            "the large shape from scratch": scratch(life.root / "grow", sum(spent[:3]), 6),
            "the small one trained on": longer,
        },
        "distil": {
            "its shape from scratch, as long": scratch(life.root / "prune", spent[4], 7),
            "its shape from scratch, the whole life": scratch(
                life.root / "prune", sum(spent[:5]), 7
            ),
        },
    }
    for name, tries in others.items():
        for what, make in tries.items():
            row = finished(root / what.replace(", ", " "), make)
            rows[name].setdefault("instead", {})[what] = {
                "loss": row["after"],
                "tokens": row["tokens"],
                "cpu_s": row["cpu_s"],
            }


# The tools that the steps share.


def llama(settings: Settings, width: int, depth: int) -> LlamaForCausalLM:
    """A Llama over bytes with new weights."""
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // HEAD,
            num_key_value_heads=width // HEAD,
            max_position_embeddings=LENGTH,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


def scaled(life: Life, model: nn.Module) -> nn.Module:
    """The model under the recipe of the life, if it has one."""
    return us.unit_scale(model, life.recipe, inner="eager") if life.recipe else model


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Torch's own; units ask for nothing else."""
    return torch.optim.AdamW(model.parameters(), lr=LR)


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, torch.Tensor]],
    steps: int,
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None,
) -> Check:
    """Warm up over a tenth of the steps, go down to zero; a check that every parameter moved."""
    old = [p.detach().clone() for p in model.parameters()]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(10 * (t + 1) / steps, 1.0, (steps - t) / steps + 0.1)
    )
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(batch) if loss_of else model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
    moved = sum(not torch.equal(a, b) for a, b in zip(old, model.parameters(), strict=True))
    return check("every parameter moved", f"{moved} of {len(old)}", moved == len(old))


def opened(folder: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model of a step, under its recipe at its units, and its optimizer."""
    model = LlamaForCausalLM.from_pretrained(folder)
    if (folder / UNITS).exists():
        us.unit_scale(model, RECIPE, inner="eager")
        us.load_units(model, folder / UNITS)
    optimizer = adamw(model)
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER))
    return model, optimizer


def row_of(
    life: Life,
    model: Any,
    optimizer: torch.optim.Optimizer | None,
    folder: Path,
    before: float,
    steps: int,
    parameters: int | None = None,
) -> Row:
    """Keep a model in a folder, and say what it is. A finished one is there already."""
    after = life.loss(model)
    if optimizer is not None:
        model.save_pretrained(folder)
        torch.save(optimizer.state_dict(), folder / OPTIMIZER)
        if life.recipe:
            us.save_units(model, folder / UNITS)
    depth = model.config.num_hidden_layers
    return {
        "shape": f"{model.config.hidden_size} x {depth}",
        "parameters": parameters or sum(p.numel() for p in model.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        "tokens": steps * BATCH * LENGTH,
        "work": 3 * forward_work(model, steps),
        "before": before,
        "after": after,
        "recipe": life.recipe or "fp32",
        "rounded": f"{LINEAR * depth} of {LINEAR * depth}" if life.recipe else "0",
        "checks": [],
    }


def forward_work(model: nn.Module, steps: int) -> float:
    """Multiply-adds of forward passes; the table of embeddings multiplies nothing."""
    own = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    return own * steps * BATCH * LENGTH


def batch_of(windows: Any) -> dict[str, torch.Tensor]:
    """Windows of bytes as `transformers` takes them."""
    ids = torch.from_numpy(windows.astype("int64"))
    return {"input_ids": ids, "labels": ids}


# In which way could a step quietly do nothing? Each question has its answer in the report.


def in_force(life: Life, model: nn.Module) -> list[Check]:
    """Whether the recipe rounds all that it should, and whether that makes a difference."""
    if life.recipe is None:
        return []
    summary, linear = us.summary(model), LINEAR * model.config.num_hidden_layers
    rounded = sum(product.why is None for product in summary.products)
    batch = next(life.batches(5, 1))
    with torch.no_grad():
        own = model(**batch).logits
        with us.full_precision(model):
            exact = model(**batch).logits
    difference = (own - exact).abs().max().item()
    return [
        check(
            f"linear layers in {summary.recipe}",
            f"{rounded} of {linear}",
            rounded == linear and summary.recipe == life.recipe,
        ),
        check("rounding changes the logits", f"by up to {difference:.2g}", difference > 0),
    ]


def came_along(life: Life, carried: int, folder: Path) -> list[Check]:
    """Whether the new model had all of its units before its first call."""
    if life.recipe is None:
        return []
    total = units_in(folder)
    return [check("units before the first call", f"{carried} of {total}", 0 < carried == total)]


def read_back(source: Path, loss: float) -> Check:
    """Whether a folder gives the loss that the step before ended with."""
    left = row_in(source)["after"]
    return check("the folder gives the loss it was left with", f"{loss:.4f}", loss == left)


def units_of(folder: Path) -> dict[str, Any]:
    """The units in a folder, by tensor."""
    file = folder / UNITS
    return json.loads(file.read_text())["units"] if file.exists() else {}


def units_in(folder: Path) -> int:
    """How many units a folder has."""
    return len(units_of(folder))


def kept(source: Path, folder: Path) -> dict[str, int]:
    """How many of the units that a step began with it ended with."""
    old, new = units_of(source), units_of(folder)
    both = old.keys() & new.keys()
    near = sum(abs(old[n]["s"] - new[n]["s"]) <= 1 for n in both)
    return {
        "in force": len(new),
        "carried over": len(both),
        "kept": sum(old[n] == new[n] for n in both),
        "s within a factor of 2": near,
    }


def lived(life: Life) -> dict[str, Row]:
    """All steps of a life, those that are done read back."""
    rows: dict[str, Row] = {}
    source = life.root
    for name, step in LIFE.items():
        folder = life.root / name
        rows[name] = finished(folder, lambda new, step=step, source=source: step(life, source, new))
        source = folder
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="a text file; without it Python's standard library")
    parser.add_argument("--out", type=Path, default=Path("runs/life"), help="where the steps are")
    parser.add_argument("--steps", type=int, default=100, help="of each training of the first two")
    parser.add_argument("--width", type=int, default=32, help=f"of the small one, {HEAD} a head")
    parser.add_argument("--depth", type=int, default=2, help="of the small one")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    corpus = open_corpus(given.data)
    settings = Settings(
        steps=given.steps,
        width=given.width,
        depth=given.depth,
        seed=given.seed,
        text=corpus.fingerprint,
    )
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    life = Life(root=given.out, settings=settings, corpus=corpus)
    rows = lived(life)
    fp32 = lived(replace(life, root=given.out / "fp32", recipe=None))
    instead(life, rows)
    about = {
        **asdict(settings),
        "text": corpus.name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }
    write(given.out / "report.json", json.dumps({**about, "steps": rows, "fp32": fp32}, indent=1))
    text = page(f"A life in {RECIPE}", rows, fp32)
    write(given.out / "report.md", text)
    print(text)
    for line in failed(rows):
        print(f"does not hold: {line}", file=sys.stderr)
    return 1 if failed(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
