"""What the steps of `life_of_a_model.py` share: the text, the loop, folders, and the questions."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from life_report import Check, Row, check, row_in
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import unitscale as us
from unitscale.data import Corpus, fixed_batches, sample_windows

RECIPE = "fp8-serve"
"""Rounds what servers round: so the model is trained in the numbers that it will be served in."""

BATCH, LENGTH, HEAD, LR = 8, 64, 16, 4e-3
LINEAR = 7
"""Linear layers in each layer of a Llama; the recipe rounds them all, and not the head."""

UNITS, OPTIMIZER = "units.json", "optimizer.pt"


@dataclass(frozen=True, kw_only=True)
class Life:
    """One life: where its steps are, and whether it has a recipe or is lived in FP32.

    Attributes:
        steps: of each of the first two trainings.
        width, depth: of the small model.
    """

    root: Path
    corpus: Corpus
    steps: int
    width: int
    depth: int
    seed: int
    recipe: str | None = RECIPE

    def settings(self) -> dict[str, Any]:
        """What a folder of steps is known by."""
        own = {name: getattr(self, name) for name in ("steps", "width", "depth", "seed", "recipe")}
        return {**own, "text": self.corpus.fingerprint}

    def batches(self, phase: int, steps: int) -> Iterator[dict[str, Tensor]]:
        """The text of a phase, the same in every life of a seed."""
        own = {"seed": 100 * self.seed + phase, "batch_size": BATCH, "length": LENGTH}
        for step in range(steps):
            yield batch_of(sample_windows(self.corpus.train, step=step, **own))

    def loss(self, model: nn.Module) -> float:
        """The mean loss over 128 windows of text held out, in the numerics that the model has."""
        model.eval()
        windows = fixed_batches(self.corpus.valid, count=128, length=LENGTH, batch_size=BATCH)
        with torch.no_grad():
            losses = [model(**batch_of(own)).loss.item() for own in windows]
        return math.fsum(losses) / len(losses)

    def new(self, times: int) -> Any:
        """A Llama with new weights under the recipe of this life, `times` as wide and deep."""
        torch.manual_seed(self.seed)
        width = times * self.width
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=times * self.depth,
            num_attention_heads=width // HEAD,
            num_key_value_heads=width // HEAD,
            max_position_embeddings=LENGTH,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        return self.scaled(LlamaForCausalLM(config))

    def scaled(self, model: nn.Module) -> Any:
        """A model under the recipe of this life, if it has one."""
        return us.unit_scale(model, self.recipe) if self.recipe else model

    def units(self, model: nn.Module) -> int:
        """How many tensors have a unit; before the first call of a model those that came along."""
        return us.summary(model).units if self.recipe else 0


def batch_of(windows: Any) -> dict[str, Tensor]:
    """Windows of bytes as `transformers` takes them."""
    ids = torch.from_numpy(windows.astype("int64"))
    return {"input_ids": ids, "labels": ids}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Torch's own; units ask for nothing else."""
    return torch.optim.AdamW(model.parameters(), lr=LR)


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, Tensor]],
    steps: int,
    loss_of: Callable[[dict[str, Tensor]], Tensor] | None = None,
) -> Check:
    """Train, with a warm-up over a tenth of the steps and down to a tenth of the rate after it."""
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


def opened(folder: Path) -> tuple[Any, torch.optim.Optimizer]:
    """The model of a step, under its recipe at its units, and its optimizer."""
    model = LlamaForCausalLM.from_pretrained(folder)
    if (folder / UNITS).exists():
        us.unit_scale(model, RECIPE)
        us.load_units(model, folder / UNITS)
    optimizer = adamw(model)
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER))
    return model, optimizer


def row_of(life: Life, model: Any, folder: Path, before: float, steps: int) -> Row:
    """A step as a row of the report; its files are in the folder already."""
    return {
        "shape": f"{model.config.hidden_size} x {model.config.num_hidden_layers}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        "tokens": steps * BATCH * LENGTH,
        "work": 3 * forward_work(model, steps),
        "before": before,
        "after": life.loss(model),
        "recipe": life.recipe or "fp32",
        "rounded": "–",
        "units": {},
        "checks": [],
    }


def kept_in(
    life: Life,
    folder: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    before: float,
    steps: int,
) -> Row:
    """Keep what a step made, and say what it is and how far the recipe is in force in it."""
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    row = row_of(life, model, folder, before, steps)
    if life.recipe:
        us.save_units(model, folder / UNITS)
        row["rounded"], row["checks"] = in_force(life, model, steps)
        row["units"] = {"in force": len(units_in(folder))}
    return row


def forward_work(model: nn.Module, steps: int) -> float:
    """Multiply-adds of forward passes; the table of embeddings multiplies nothing."""
    own = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    return own * steps * BATCH * LENGTH


# In which way could a step quietly have done nothing?


def in_force(life: Life, model: Any, steps: int) -> tuple[str, list[Check]]:
    """How many linear layers a recipe rounds, and whether it did in all steps, with an effect."""
    summary, linear = us.summary(model), LINEAR * model.config.num_hidden_layers
    rounded = sum(product.why is None for product in summary.products)
    batch = next(life.batches(5, 1))
    with torch.no_grad():
        own = model(**batch).logits
        with us.full_precision(model):
            exact = model(**batch).logits
    difference = (own - exact).abs().max().item()
    is_whole = rounded == linear and not summary.plain and not summary.unseen
    share = f"{rounded} of {linear}"
    return share, [
        check(
            f"linear layers in {summary.recipe}", share, is_whole and summary.recipe == life.recipe
        ),
        check("steps of training in it", f"{summary.steps} of {steps}", summary.steps == steps),
        check("rounding changes the logits", f"by up to {difference:.2g}", difference > 0),
    ]


def came_along(life: Life, carried: int, row: Row) -> list[Check]:
    """Whether a new model had all of its units before its first call."""
    if not life.recipe:
        return []
    total = row["units"]["in force"]
    row["units"]["carried over"] = carried
    return [check("units before the first call", f"{carried} of {total}", 0 < carried == total)]


def read_back(source: Path, loss: float) -> Check:
    """Whether a folder gives the loss that the step before ended with."""
    left = row_in(source)["after"]
    return check("the folder gives the loss it was left with", f"{loss:.4f}", loss == left)


def units_in(folder: Path) -> dict[str, Any]:
    """The units in a folder, by tensor."""
    file = folder / UNITS
    return json.loads(file.read_text())["units"] if file.exists() else {}


def kept_of(source: Path, folder: Path) -> dict[str, int]:
    """How many of the units that a step began with it ended with."""
    old, new = units_in(source), units_in(folder)
    both = old.keys() & new.keys()
    return {
        "kept": sum(old[n] == new[n] for n in both),
        "with s within a factor of 2": sum(abs(old[n]["s"] - new[n]["s"]) <= 1 for n in both),
    }
