"""`unitscale compress`: a smaller model from a trained one, in a folder."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from unitscale.cli import option
from unitscale.cli.exit import checking_arguments, running
from unitscale.cli.output import show, train_on


def compress(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|RUN",
            help="Folder of `save_pretrained` (GPT-2, Llama, BERT, ViT), or of `unitscale train` "
            "with --model gpt2 or llama.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            metavar="SIZES",
            help="width=48,ffn=128 (or depth, heads, kv_heads), 50% of the parameters, or 1.5M.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=option.given_path, metavar="DIR", help="Folder to write: new, or empty."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text to measure and distil with. Default: Python's source.", show_default=False
        ),
    ] = None,
    importance: Annotated[
        str, typer.Option(help="What is kept: by activations, magnitude or random.")
    ] = "activations",
    samples: Annotated[int, typer.Option(min=1, help="Windows of text to measure with.")] = 64,
    distil_steps: Annotated[
        int, typer.Option(min=0, help="Training steps against the large model, of a folder.")
    ] = 0,
    lr: Annotated[float, typer.Option(help="Of distillation, with a cosine.")] = 1e-3,
    recipe: Annotated[str, typer.Option(help="Of the student in distillation.")] = "fp32",
    seed: Annotated[int, typer.Option(min=0, help="Of the text, and of random scores.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the compressed run. Default: those of the run.", show_default=False
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print what would be kept.")] = False,
    json: option.Json = False,
) -> None:
    """Prune a trained model to a shape or a size, by what its activations show to matter.

    A folder may be distilled from the large model before it is written. A run's optimizer and
    units are carried over, and the command that trains it on is printed.
    """
    with checking_arguments():
        from unitscale.compress.written import compress_folder

    with running(), checking_arguments():
        done = compress_folder(
            source,
            out,
            target,
            data=data,
            importance=importance,
            samples=samples,
            distil_steps=distil_steps,
            lr=lr,
            recipe=recipe,
            seed=seed,
            steps=steps,
            write=not plan,
        )
    if json:
        print(json_module.dumps(done.to_json(), indent=2))
        return
    lines = [str(done.plan)]
    if done.losses:
        lines += ["", f"distilled: {done.losses[0]:.4f} -> {done.losses[-1]:.4f} nats a position"]
    if done.report is not None:
        lines += ["", str(done.report), str(done.folder)]
    if done.command:
        lines += ["", *train_on(done.command, done.text)]
    show(*lines)
