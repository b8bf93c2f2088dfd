"""`unitscale export`: the model of a run as a folder that inference servers load."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from unitscale.cli import option
from unitscale.cli.exit import checking_arguments, running
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.train import TrainConfig


def export(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of `unitscale train --model llama`.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=option.given_path, metavar="DIR", help="Folder to write: new, or empty."
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            help="compressed-tensors (transformers, vLLM, SGLang), modelopt, or safetensors."
        ),
    ] = "compressed-tensors",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the files of this tokenizer too. Models of `train` read bytes: none.",
            show_default=False,
        ),
    ] = None,
    differences: Annotated[
        str,
        typer.Option(
            help="Where a server would compute something else: refuse to export, or report it and "
            "export."
        ),
    ] = "refuse",
    json: option.Json = False,
) -> None:
    """Write the model of a run for inference servers: FP8 weights at static scales, its units.

    Trained with `--recipe fp8-serve` it is served as it is evaluated, to the bit on a CPU; nothing
    is calibrated. The export has no master weights: keep the run.
    """
    from unitscale import deploy
    from unitscale.deploy.description import Format, check_format
    from unitscale.deploy.export import check_folder

    with checking_arguments():
        check_format(format)
        check_folder(out)
        from unitscale.train.trained import run_of, trained_model

    with running(), checking_arguments():
        check_run(run_dir, run_of(run_dir)[0])
        model, step = trained_model(run_dir)
        done = deploy.export(
            model,
            out,
            cast(Format, format),
            tokenizer=tokenizer,
            differences=cast(Literal["refuse", "report"], differences),
        )
    if json:
        row = asdict(done) | {"folder": str(done.folder), "step": step}
        print(json_module.dumps(row, indent=2))
        return
    show(f"step {step} of {run_dir}", str(done))


def check_run(folder: Path, config: "TrainConfig") -> None:
    """Refuse a run whose model has no units that a server could take, before it is loaded.

    Raises:
        ValueError: says which run to make instead.
    """
    instead = "train one with --model llama --recipe fp8-serve, and export that"
    if config.existing is None:
        raise ValueError(
            f"export: {folder} is a run of the built-in byte-level model, whose scales are factors "
            f"in its own code, and which no server has: {instead}"
        )
    if not config.gives_units:
        raise ValueError(
            f"export: {folder} was trained with recipe {config.recipe_name!r}, which gives a model "
            f"no units, so that there are no scales to export: {instead}"
        )
