"""`unitscale grow`: a larger model from a trained one, in a folder."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from unitscale.cli import option
from unitscale.cli.exit import checking_arguments, running
from unitscale.cli.output import show, train_on


def grow(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|RUN",
            help="Folder of `save_pretrained` (GPT-2, Llama, BERT, ViT), or of `unitscale train` "
            "with --model gpt2 or llama.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=option.given_path, metavar="DIR", help="Folder to write: new, or empty."
        ),
    ],
    width: Annotated[
        int | None,
        typer.Option(
            min=1, help="New width of the residual stream. Default: as it is.", show_default=False
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="New number of layers. Default: as it is.", show_default=False),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="New number of query heads. Default: it grows as the width does.",
            show_default=False,
        ),
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(min=1, help="The same of keys and values, in a Llama.", show_default=False),
    ] = None,
    ffn: Annotated[
        int | None,
        typer.Option(
            min=1, help="New inner width of the MLPs. Default: as the width.", show_default=False
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="fpi (copies, keeps the function), aki (new rows from the next layer) or aki-pro."
        ),
    ] = "fpi",
    depth_method: Annotated[
        str | None,
        typer.Option(
            help="identity (new blocks add nothing at first), interpolate or stack. Default: "
            "identity with fpi, stack with aki, interpolate with aki-pro.",
            show_default=False,
        ),
    ] = None,
    noise: Annotated[
        float,
        typer.Option(help="Relative noise that breaks ties between copies and keeps the function."),
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For a run: steps that the grown run is to train. Default: as many as the run.",
            show_default=False,
        ),
    ] = None,
    run_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="For a run: seed of the grown run, which chooses its windows of text. Default: "
            "one more than that of the run.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print what would be done; write nothing.")
    ] = False,
    json: option.Json = False,
) -> None:
    """Grow a trained model: wider, deeper, the same function. A run's optimizer and units as well.

    The grown model is compared with the old one before anything is written. A grown run is at its
    first step; the command that trains it on is printed.
    """
    with checking_arguments():
        from unitscale.growth.written import grow_folder

    with running(), checking_arguments():
        done = grow_folder(
            source,
            out,
            steps=steps,
            run_seed=run_seed,
            write=not plan,
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            ffn=ffn,
            method=method,
            depth_method=depth_method,
            noise=noise,
            seed=seed,
        )
    if json:
        print(json_module.dumps(done.to_json(), indent=2))
        return
    lines = [str(done.plan)]
    if done.proof is not None:
        lines += ["", str(done.proof), str(done.folder)]
    if done.command:
        lines += ["", *train_on(done.command, done.text)]
    show(*lines)
