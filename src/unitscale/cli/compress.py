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
            help="Sizes, as width=48,ffn=128 (also depth, heads, kv_heads). For a folder of "
            "`save_pretrained` also a share of the parameters, as 50%, or their number, as 1.5M. "
            "For a run width=, depth= or both: its heads and MLPs follow the width.",
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
            help="Text to measure and distil with. Default: the source text of Python's own "
            "standard library.",
            show_default=False,
        ),
    ] = None,
    importance: Annotated[
        str,
        typer.Option(
            help="What decides which parts are kept: activations (measured on the text), magnitude "
            "(of the weights) or random."
        ),
    ] = "activations",
    samples: Annotated[
        int, typer.Option(min=1, help="Windows of text that activations are measured on.")
    ] = 64,
    distil_steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="For a folder: training steps of the small model against the large one. A run is "
            "trained on by `unitscale train --resume`.",
        ),
    ] = 0,
    lr: Annotated[
        float, typer.Option(help="With --distil-steps: peak learning rate; it falls by a cosine.")
    ] = 1e-3,
    recipe: Annotated[
        str, typer.Option(help="With --distil-steps: recipe of the small model.")
    ] = "fp32",
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the windows of text, and of --importance random.")
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For a run: steps that the small run is to train. Default: as many as the run.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print what would be kept; write nothing.")
    ] = False,
    json: option.Json = False,
) -> None:
    """Prune a trained model to a shape or a size, by what its activations show to matter.

    A FOLDER is a model of transformers; with --distil-steps the small model is trained to give what
    the large one gives before it is written. A RUN is a folder of `unitscale train`: its optimizer
    and its units are carried over, and the command that trains the small run on is printed.
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
