"""Compression from a folder to a folder: of `transformers`, or a run of `unitscale train`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.anatomy.folder import described, loaded, random_batch
from unitscale.anatomy.rebuilt import undrawn
from unitscale.anatomy.written import Outcome, Run, changed_config, write_model, write_run
from unitscale.compress.apply import Report, apply, prune_optimizer, pruning, verify
from unitscale.compress.distil import Distillation, distil
from unitscale.compress.importance import Importance, drawn, magnitude, measure
from unitscale.compress.plan import Plan, plan
from unitscale.compress.target import parse_target
from unitscale.data import Corpus, open_corpus, sample_windows
from unitscale.recipes import parse
from unitscale.train.config import TrainConfig
from unitscale.units import unit_scale, unscale

__all__ = ["Written", "compress_folder"]

LINEAGE = "compress.json"
"""Beside a compressed model: the plan, the report, and what it came from."""

BATCH, LENGTH = 8, 64
"""Windows of a batch, and tokens of a window, at most."""

RANKINGS = ("activations", "magnitude", "random")

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Written(Outcome):
    """What compression did to a folder.

    Attributes:
        report: of the small model beside the large one; None where it was only planned.
        losses: of the steps of distillation.
    """

    report: Report | None = None
    losses: tuple[float, ...] = ()

    def shown(self) -> dict[str, Any]:
        """The report."""
        return {"report": None if self.report is None else asdict(self.report)}

    def to_json(self) -> dict[str, Any]:
        """The same as data, without the shapes of every parameter."""
        return {**super().to_json(), "losses": list(self.losses)}


def compress_folder(
    source: Path,
    out: Path,
    target: str,
    *,
    data: Path | None = None,
    importance: str = "activations",
    samples: int = 64,
    distil_steps: int = 0,
    lr: float = 1e-3,
    recipe: str = "fp32",
    seed: int = 0,
    steps: int | None = None,
    write: bool = True,
) -> Written:
    """Compress the model in a folder and write it to another one.

    A folder of `transformers` gives one that `from_pretrained` loads. A run gives a run at its
    first step, with optimizer and units carried over, which `unitscale train --resume` trains.

    Args:
        source: a folder of `save_pretrained`, or of `unitscale train --model gpt2` or llama.
        out: new, or empty. It is written whole or not at all.
        target: see `parse_target`.
        data: text; None is the standard library's source.
        importance: "activations", "magnitude" or "random".
        samples: windows of text to measure with.
        distil_steps: of training against the large model, for a folder.
        lr: of that, by AdamW with a cosine; recipe: of the student in it.
        seed: of random scores, of the text's windows and of dropout in distillation.
        steps: of the compressed run; None is as many as before.
        write: false only plans.

    Raises:
        ValueError: no such folder, an `out` that holds something, what `plan` refuses, an option
            that does not go with the folder.
        CheckpointError: a file of the run is damaged.
    """
    if importance not in RANKINGS:
        raise ValueError(f"importance is {importance!r}; expected {', '.join(RANKINGS)}")
    for name, number, least in (
        ("samples", samples, 1),
        ("distil_steps", distil_steps, 0),
        ("seed", seed, 0),
    ):
        if type(number) is not int or number < least:
            raise ValueError(f"{name} is {number!r}; expected a whole number of at least {least}")
    if seed >= 2**32:
        raise ValueError(f"seed is {seed}; expected a whole number below 2**32")
    if not 0 < lr < float("inf"):  # false for NaN
        raise ValueError(f"lr is {lr!r}; expected a number above 0")
    parse(recipe)
    description, is_run = described(source, out, "compress", write=write)
    corpus = open_corpus(data)
    if is_run:
        if distil_steps:
            raise ValueError(
                f"distil_steps is {distil_steps}, and {source} is a run: it trains on by "
                "unitscale train --resume; distil a folder of save_pretrained, or in Python"
            )
        with undrawn():
            run = Run.read(source, description, "compress")
            asked = in_proportion(run.model, parse_target(target, size_of(run.model)))
            length = run.config.sequence_length
            windows = byte_batches(corpus, seed, samples, length)
            made = plan(run.model, importance=ranked(run.model, importance, seed, windows), **asked)
            check_run(made, run.config)
            if not write:
                return Written(plan=made)
            return compress_run(run, out, made, corpus, data, steps)
    if steps is not None:
        raise ValueError(f"steps is {steps!r}, and {source} is no run of `unitscale train`")
    model: Any = loaded(source, description)
    if model.config.model_type == "vit" and (importance == "activations" or distil_steps):
        raise ValueError(
            f"{source} is a vit, which reads no text: give importance='magnitude' and no "
            "distil_steps, or compress it in Python with pictures of your own"
        )
    batches = batches_for(source, model, corpus, data, seed)
    scores = ranked(model, importance, seed, batches(0, -(-samples // BATCH)))
    made = plan(model, importance=scores, **parse_target(target, size_of(model)))
    if not write:
        return Written(plan=made)
    student, losses = apply(model, made), []
    if distil_steps:
        kept = {name: tensor.dtype for name, tensor in named_tensors(student)}
        student.float()  # in place: a step of AdamW is lost in BF16 weights, and NaN in FP16's
        if recipe != "fp32":
            unit_scale(student, recipe)
        student.train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, distil_steps)
        first = -(-samples // BATCH)
        given = batches(first, first + distil_steps)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of dropout, which a model of transformers may have
            losses = distil(Distillation(model, student, made), given, optimizer, schedule=schedule)
        student = (unscale(student) if recipe != "fp32" else student).eval()
        for name, tensor in named_tensors(student):
            tensor.data = tensor.data.to(kept[name])
    report = verify(model, student, next(iter(batches(-1, 0)), None) or random_batch(model.config))
    done = Written(plan=made, folder=out, report=report, losses=tuple(losses))
    write_model(student, source, done, LINEAGE)
    return done


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def size_of(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def ranked(model: nn.Module, how: str, seed: int, batches: Iterator[Batch]) -> Importance:
    """Scores of a model by name."""
    if how == "random":
        return drawn(model, seed)
    return magnitude(model) if how == "magnitude" else measure(model, batches)


def byte_batches(corpus: Corpus, seed: int, samples: int, length: int) -> Iterator[Batch]:
    """Windows of bytes, in batches."""
    corpus.require(batch_size=BATCH, length=length)
    for step in range(-(-samples // BATCH)):
        windows = sample_windows(
            corpus.train, seed=seed, step=step, batch_size=BATCH, length=length
        )
        yield {"input_ids": torch.from_numpy(windows.astype("int64"))}


def batches_for(source: Path, model: Any, corpus: Corpus, data: Path | None, seed: int) -> Any:
    """A function of a first and a last number: the batches between, for a model of a folder.

    Text goes through the folder's tokenizer; without one, a model of fewer than 512 symbols reads
    bytes. A ViT gets random pictures, by which only weights are to be ranked.

    Raises:
        ValueError: the model reads no text that could be given to it.
    """
    config = model.config
    if config.model_type == "vit":
        return lambda first, last: iter([random_batch(config)] if last > first else [])
    length = min(LENGTH, getattr(config, "max_position_embeddings", LENGTH))
    tokens = None
    if any((source / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        from transformers import AutoTokenizer

        text = corpus.train.read(0, min(len(corpus.train), 1 << 22)).decode(errors="replace")
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(tokens) <= length:
            raise ValueError(
                f"{data or 'the text'} has {len(tokens)} tokens, and windows of {length} are cut "
                "from it; use a longer text as --data"
            )
    elif not 256 <= config.vocab_size < 512:
        raise ValueError(
            f"{source} has no tokenizer, and its model of {config.vocab_size} symbols does not "
            "read bytes; put the tokenizer's files into the folder"
        )
    else:
        corpus.require(batch_size=BATCH, length=length)
    causal = config.model_type in ("gpt2", "llama")

    def batches(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            if tokens is None:
                given = sample_windows(
                    corpus.train, seed=seed, step=step % 2**32, batch_size=BATCH, length=length
                )
                ids = torch.from_numpy(given.astype("int64"))
            else:
                generator = torch.Generator().manual_seed(seed * 2**20 + step % 2**20)
                starts = torch.randint(len(tokens) - length, (BATCH,), generator=generator)
                ids = torch.stack([tokens[at : at + length] for at in starts.tolist()])
            yield {"input_ids": ids, **({"labels": ids.clone()} if causal else {})}

    return batches


def in_proportion(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Sizes of a run: heads and MLPs follow the width, unless they are given."""
    config = model.config
    width = asked.get("width")
    own = getattr(config, "hidden_size", None) or config.n_embd
    if width is None:
        return asked
    heads = config.num_attention_heads
    ffn = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * own
    follow = {"heads": heads * width / own, "ffn": ffn * width / own}
    for name, size in follow.items():
        if name not in asked and size != int(size):
            raise ValueError(
                f"compress: at width {width} the {name} of this run would be {size:g}; give a "
                "width that divides"
            )
    return {**{name: int(size) for name, size in follow.items()}, **asked}


def check_run(made: Plan, config: TrainConfig) -> None:
    """Refuse a shape that the models of `unitscale train` cannot have.

    Raises:
        ValueError: says which size.
    """
    old, target = made.old, made.target
    for name in ("ffn", "heads", "kv_heads"):
        if getattr(target, name) * old.width != getattr(old, name) * target.width:
            raise ValueError(
                f"compress: {name} would be {getattr(target, name)} at width {target.width}; in a "
                f"run of {config.existing} sizes follow the width: give width=, or depth="
            )


def compress_run(
    run: Run, out: Path, made: Plan, corpus: Corpus, data: Path | None, steps: int | None
) -> Written:
    """`compress_folder` of a run."""
    large, pruned = run.model, apply(run.model, made)
    config = changed_config(run.config, made.target, steps)
    batch = next(byte_batches(corpus, config.seed, BATCH, config.sequence_length))
    report = verify(large, pruned, {**batch, "labels": batch["input_ids"]})
    return write_run(
        run,
        pruned,
        config,
        Written(plan=made, folder=out, report=report),
        LINEAGE,
        *(() if data is None else (data,)),
        optimizer=lambda old, new: prune_optimizer(old, new, model=large, pruned=pruned, plan=made),
        passage=pruning(made, large, pruned),
    )
