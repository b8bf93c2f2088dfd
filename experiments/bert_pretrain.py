"""Masked-LM pre-training of BERT, of `transformers` and written unit-scaled, in four formats.

    python experiments/bert_pretrain.py --data FILE --out runs/bert
    python experiments/bert_pretrain.py --steps 5 --out runs/smoke --seeds 0

Every run leaves `OUT/pretrain/MODEL-RECIPE-SEED.json` with its losses and the weights beside it; a
run that is there is not repeated, so the experiment may be stopped at any time. Seeds are the
outermost loop: what is there is complete for its seeds. `bert_finetune.py` goes on from the
weights, and `bert_report.py` makes the tables.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bert_arms import ARMS, RATES, Size, build, give, make_optimizer, make_schedule
from bert_text import IGNORED, Stream, load_tokenizer
from pool import Result
from unitscale.data import Corpus, open_corpus
from unitscale.report.atomic import replacing

EVALUATED = 256  # sequences of the text held out, the same ones for every run
BATCH = 16
EVERY = 50  # steps between two entries of the curve


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    size = Size(
        **{name: getattr(args, name) for name in ("vocab_size", "width", "depth", "length")}
    )
    corpus = open_corpus(args.data)
    texts: dict[str, Stream] = {}

    def text(name: str) -> Stream:
        """Tokenized at the first use: all runs may be there already."""
        if name not in texts:
            tokenizer = load_tokenizer(corpus, size.vocab_size, args.out)
            texts[name] = Stream.of(getattr(corpus, name), tokenizer)
        return texts[name]

    for seed, model, recipe in chosen(args):
        path = args.out / "pretrain" / f"{model}-{recipe}-{seed}.json"
        rate = RATES[model] if args.lr_log2 is None else 2.0**args.lr_log2
        setting = settings(corpus, size, args.steps, rate)
        if is_done(path, setting):
            continue
        result, trained = pretrain(model, recipe, seed, size, args.steps, rate, text)
        write(path, setting, result, trained)
        loss = "diverged" if result["loss"] is None else f"{result['loss']:.4f}"
        print(f"{path.stem}: {loss} ({result['cpu_s']:.0f} s)", flush=True)


def arguments(more: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The options, which fine-tuning has as well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bert"))
    parser.add_argument("--data", help="a text file; without it, the embedded corpus")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=["transformers", "written"])
    parser.add_argument("--recipes", nargs="+", choices=sorted({recipe for _, recipe in ARMS}))
    parser.add_argument("--steps", type=int, default=1000, help="of pre-training")
    parser.add_argument("--lr-log2", type=float, help="the peak rate; default: see bert_arms.py")
    for name, value in asdict(Size()).items():
        if name != "heads":
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    if more is not None:
        more(parser)
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """Seed, model and recipe of every run; seeds outermost."""
    for seed in args.seeds:
        for model, recipe in ARMS:
            if model in (args.models or [model]) and recipe in (args.recipes or [recipe]):
                yield seed, model, recipe


def settings(corpus: Corpus, size: Size, steps: int, rate: float) -> dict[str, Any]:
    """What the runs of one table share."""
    text = {"data": corpus.name, "fingerprint": corpus.fingerprint}
    return {**text, **asdict(size), "batch_size": BATCH, "steps": steps, "rate": rate}


def is_done(path: Path, setting: dict[str, Any]) -> bool:
    """Whether the run of that file is finished.

    Raises:
        SystemExit: it is one with other settings.
    """
    if not path.exists():
        return False
    found = json.loads(path.read_text())["setting"]
    other = sorted(key for key in {*found, *setting} if found.get(key) != setting.get(key))
    if other:
        raise SystemExit(
            f"{path} is a run with other settings ({', '.join(other)}); use another --out"
        )
    return True


def write(path: Path, setting: dict[str, Any], result: Result, trained: nn.Module | None) -> None:
    """The weights first: a result that is there has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if trained is not None:
        with replacing(path.with_suffix(".safetensors")) as temporary:
            tensors = {name: value.contiguous() for name, value in unique(trained).items()}
            save_file(tensors, temporary)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"setting": setting, "result": result}, indent=1))


def unique(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters, each tied one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def pretrain(
    model_name: str,
    recipe: str,
    seed: int,
    size: Size,
    steps: int,
    rate: float,
    text: Callable[[str], Stream],
) -> tuple[Result, nn.Module]:
    """The result and the model of one run, which ends where its loss is no number any more."""
    train, valid = text("train"), text("valid")
    model = build(model_name, size, "masked", recipe, seed)
    give(model, recipe)
    optimizer = make_optimizer(model, rate)
    schedule = make_schedule(optimizer, steps)
    start, curve = time.process_time(), []
    recent: list[float] = []
    for step in range(steps):
        batch = train.batch(batch_size=BATCH, length=size.length, seed=seed, step=step)
        loss = model(batch.ids, batch.targets, batch.segments)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            cpu_s = time.process_time() - start
            lost = {"loss": None, "accuracy": None, "diverged_at": step}
            return {**lost, "curve": curve, "cpu_s": cpu_s}, model
        if len(recent) == EVERY or step + 1 == steps:
            curve.append((step + 1, sum(recent) / len(recent)))
            recent.clear()
    cpu_s = time.process_time() - start
    loss, accuracy = evaluate(model, valid, size)
    return {"loss": loss, "accuracy": accuracy, "curve": curve, "cpu_s": cpu_s}, model


@torch.no_grad()
def evaluate(model: nn.Module, text: Stream, size: Size) -> tuple[float, float]:
    """Loss in nats and accuracy in percent per masked token of the text held out."""
    model.eval()
    loss = right = count = 0.0
    for step in range(math.ceil(EVALUATED / BATCH)):
        batch = text.batch(batch_size=BATCH, length=size.length, seed=2**20, step=step)
        logits = model(batch.ids, None, batch.segments).flatten(0, 1).float()
        targets = batch.targets.flatten()
        loss += nn.functional.cross_entropy(
            logits, targets, ignore_index=IGNORED, reduction="sum"
        ).item()
        asked = targets != IGNORED
        right += (logits.argmax(-1) == targets)[asked].sum().item()
        count += asked.sum().item()
    model.train()
    return loss / count, 100 * right / count


if __name__ == "__main__":
    main()
