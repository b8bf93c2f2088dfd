"""`unitscale train`: one run, resumable."""

import json as json_module
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli import option
from unitscale.cli.compare import left_out
from unitscale.cli.exit import FAILED, checking_arguments, fail, running
from unitscale.cli.launch import agreed, hold, joined, reported
from unitscale.cli.output import show
from unitscale.cli.progress import RunProgress

if TYPE_CHECKING:
    from unitscale.data import Corpus
    from unitscale.train import TrainConfig


def train(
    recipe: Annotated[
        str,
        typer.Option(
            help="Recipe: a name, or MODULE:NAME or FILE.py:NAME of one's own. It also decides on "
            "unit scaling.",
            rich_help_panel="Run",
        ),
    ] = "fp8",
    data: option.Data = None,
    out: Annotated[
        Path,
        typer.Option(
            parser=option.given_path,
            metavar="FOLDER",
            help="Folder of the run.",
            rich_help_panel="Run",
        ),
    ] = Path("run"),
    steps: option.Steps = 1000,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. Default: that of the recipe's parametrization.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the weights and of the windows of text.", rich_help_panel="Run"),
    ] = 0,
    batch_size: option.BatchSize = 16,
    sequence_length: option.SequenceLength = 128,
    model: option.Model = "attention",
    norm: option.Norm = option.DEFAULTS["norm"],
    residual: option.Residual = option.DEFAULTS["residual"],
    width: option.Width = option.DEFAULTS["width"],
    depth: option.Depth = option.DEFAULTS["depth"],
    resume: option.Resume = False,
    device: option.Device = "auto",
    dtype: option.Dtype = "fp32",
    states: option.States = None,
    parallel: option.Parallel = None,
    accumulate: option.Accumulate = 1,
    rank_timeout: option.RankTimeout = 180,
    inner: option.Inner = "auto",
    threads: option.Threads = None,
    settings: option.Settings = None,
    tensorboard: option.Tensorboard = False,
    json: option.Json = False,
) -> None:
    """Train one character language model with one recipe.

    The folder gets config.json, log.jsonl (one line a step), checkpoint.safetensors and, at the
    end, result.json and report.html. Ctrl-C finishes the step and leaves a checkpoint of it.

    On several processes: torchrun --nproc-per-node 2 -m unitscale train ...; their checkpoints are
    in the folder `checkpoints`, and any number of processes resumes from them.
    """
    from unitscale.train.run_folder import claimed

    def checked() -> "tuple[TrainConfig, Corpus]":
        from unitscale.data import open_corpus
        from unitscale.train.tensorboard import writer_class

        config = option.build_config(
            settings,
            **option.model_fields(model, norm=norm, residual=residual, width=width, depth=depth),
            recipe=recipe,
            steps=steps,
            lr=lr,
            seed=seed,
            batch_size=batch_size,
            sequence_length=sequence_length,
            inner=inner,
            device=device,
            dtype=dtype,
            states=states,
        )
        corpus = open_corpus(data)
        corpus.require(batch_size=config.batch_size, length=config.sequence_length + 1)
        spread.check(config)
        option.set_threads(threads)
        if tensorboard:
            writer_class()  # before anything is computed: it may not be installed
        return option.with_device(config, device), corpus

    with ExitStack() as held:
        with checking_arguments():
            spread = held.enter_context(
                joined(parallel, accumulate, device=device, wait=rank_timeout)
            )
            options = {"out": out, "resume": resume, "tensorboard": tensorboard, "json": json}
            config, corpus = agreed("train", spread, checked, options)
            hold(held, spread, claimed(out, config, corpus, resume=resume))
        with running():
            from unitscale.report import write_report
            from unitscale.train.loop import run_claimed

            with RunProgress(steps=config.steps, is_shown=spread.leads) as progress:
                result = run_claimed(
                    config,
                    corpus,
                    out,
                    on_record=lambda record: progress.show(config.recipe_name, record),
                    tensorboard=tensorboard,
                    spread=spread,
                )
            reported(spread, lambda: write_report(out))
            if spread.leads and json:
                print(json_module.dumps(asdict(result), indent=2))
            elif spread.leads:
                from unitscale.report import comparison_table

                results = {
                    "data": corpus.name,
                    "model": config.model_name,
                    "steps": config.steps,
                    "runs": [asdict(result)],
                }
                show(comparison_table(results), *left_out(results))
            if result.diverged:
                # torchrun ends all ranks when one has failed: rank 0 first says what there is.
                reported(spread, sys.stdout.flush)
                fail(diverged(result.steps_done, progress.last), code=FAILED)


def diverged(steps: int, last: Mapping[str, Any]) -> str:
    """The line of a run that diverged, the same on any number of ranks but for their numbers.

    Args:
        last: the last record of the run; empty if it had ended before.
    """
    line = f"the run diverged, and ends at step {steps}"
    if last.get("not_finite_on"):
        line += f": the loss is not finite on rank {', '.join(map(str, last['not_finite_on']))}"
    return f"{line}; its report has the curve, and `analyse` says where its numerics break"
