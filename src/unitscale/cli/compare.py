"""`unitscale compare`: the main job, several recipes side by side."""

import json as json_module
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli import option
from unitscale.cli.exit import checking_arguments, reporting, running
from unitscale.cli.launch import agreed, hold, joined
from unitscale.cli.output import show
from unitscale.cli.progress import RunProgress

if TYPE_CHECKING:
    from unitscale.data import Corpus
    from unitscale.train import Spread, TrainConfig

MOST_SEEDS = 1000
WHOLE = 0.995
MOST_REASONS = 3
RECIPES = "fp32,fp32-units,fp16-none,fp8-none,fp16,fp8,fp8-e4m3"


def compare(
    data: option.Data = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE,...",
            help="Recipes, with commas between them, or repeated; `rivals` stands for one of each "
            "kind that people train with, `all` for every one, and MODULE:NAME or FILE.py:NAME for "
            "one's own. fp32-units is added where fp32 alone does not say what the format costs. "
            f"Default: {RECIPES}.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            parser=option.given_path,
            metavar="FOLDER",
            help="Folder of the results.",
            rich_help_panel="Run",
        ),
    ] = Path("comparison"),
    steps: option.Steps = 1000,
    seeds: Annotated[
        int, typer.Option(help="Runs of every recipe, seeded 0, 1, ...", rich_help_panel="Run")
    ] = 1,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate of the standard model. Default: built in.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    unit_lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate of the unit-scaled model. Default: built in.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
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
    """Train the same model on the same text under several recipes, and compare them.

    Recipes with units (fp32-units, bf16-units, fp16, fp8, fp8-bf16, fp8-e4m3, fp8-serve,
    nvfp4-units, mus) train the unit-scaled version of the model; all others train the standard one.
    An existing model (--model gpt2, say) is the same model under all of them, with the same
    learning rate; recipes with units give units to its tensors, and the others round its products
    alone. The folder gets
    results.json, loss.png, report.html and one folder per run.
    """
    from unitscale.train.planned import claimed_comparison

    def checked() -> "tuple[list[TrainConfig], Corpus]":
        from unitscale.data import open_corpus
        from unitscale.report.extra import imported
        from unitscale.train.planned import plan_runs, with_control
        from unitscale.train.tensorboard import writer_class

        base = option.build_config(
            settings,
            **option.model_fields(model, norm=norm, residual=residual, width=width, depth=depth),
            steps=steps,
            batch_size=batch_size,
            sequence_length=sequence_length,
            inner=inner,
            device=device,
            dtype=dtype,
            states=states,
            reserved={"recipe": "--recipes", "seed": "--seeds", "lr": "--lr and --unit-lr"},
        )
        imported("matplotlib")  # before anything is computed: loss.png is drawn at the end
        names = with_control(base, parse_recipes(recipes or [RECIPES]))
        configs = plan_runs(base, names, parse_seeds(seeds), standard_lr=lr, unit_lr=unit_lr)
        corpus = open_corpus(data)
        corpus.require(batch_size=base.batch_size, length=base.sequence_length + 1)
        spread.check(base)
        option.set_threads(threads)
        if tensorboard:
            writer_class()  # before anything is computed: it may not be installed
        return [option.with_device(config, device) for config in configs], corpus

    with ExitStack() as held:
        with checking_arguments():
            spread = held.enter_context(
                joined(parallel, accumulate, device=device, wait=rank_timeout)
            )
            options = {"out": out, "resume": resume, "tensorboard": tensorboard, "json": json}
            configs, corpus = agreed("compare", spread, checked, options)
            hold(held, spread, claimed_comparison(out, configs, corpus, resume=resume))
        with running():
            results = run(configs, corpus, out, spread, tensorboard=tensorboard)
            if not spread.leads:
                return
            if json:
                print(json_module.dumps(results, indent=2))
                return
            from unitscale.report import comparison_table, cost_table

            show(comparison_table(results), *left_out(results), cost_table(results))
            show(f"{out / 'loss.png'}  {out / 'report.html'}")


def run(
    configs: list["TrainConfig"],
    corpus: "Corpus",
    out: Path,
    spread: "Spread",
    *,
    tensorboard: bool,
) -> dict[str, Any]:
    """Make the runs and write their results; if stopped, those of the finished runs."""
    from unitscale.train.comparison import compare_claimed
    from unitscale.train.run_folder import write_json

    results: dict[str, Any] = {}
    try:
        with RunProgress(steps=configs[0].steps, is_shown=spread.leads) as progress:
            for results in compare_claimed(
                configs,
                corpus,
                out,
                on_record=lambda config, record: progress.show(label(config, configs), record),
                tensorboard=tensorboard,
                spread=spread,
            ):
                if spread.leads:
                    write_json(out / "results.json", results)
    finally:
        if results and spread.leads:
            with reporting():
                write_pages(configs, out, results)
    return results


def write_pages(configs: list["TrainConfig"], out: Path, results: dict[str, Any]) -> None:
    """The picture and the page of a comparison."""
    from unitscale.report import draw_losses, headline, write_report
    from unitscale.train.comparison import loss_curves
    from unitscale.train.run_folder import write_atomically

    curves = loss_curves(out, configs, results["runs"])
    title = headline(results)
    write_atomically(out / "loss.png", lambda path: draw_losses(curves, path, title=title))
    write_report(out)


def left_out(results: dict[str, Any]) -> list[str]:
    """A line under the table for the recipes that did not round all of the model, and why.

    Those that leave out the same for the same reasons have one line.
    """
    alike: dict[str, dict[str, str]] = {}
    for recipe, run in {run["recipe"]: run for run in results["runs"]}.items():
        if run.get("coverage") is not None and run["coverage"] < WHOLE:
            text = (
                f"{run['coverage']:.1%} of the multiply-adds of this model; the rest is in full "
                f"precision: {reasons(run.get('full_precision') or {})}"
            )
            alike.setdefault(text.replace(f"recipe {recipe} ", "the recipe "), {})[recipe] = text
    return [
        f"{', '.join(own)} rounds {shared if len(own) > 1 else next(iter(own.values()))}"
        for shared, own in alike.items()
    ]


def reasons(shares: dict[str, float]) -> str:
    """Why products are in full precision, the largest share first, and how many more reasons."""
    shown = [f"{share:.1%} {why}" for why, share in shares.items()][:MOST_REASONS]
    more = f"; {len(shares) - MOST_REASONS} more in results.json" * (len(shares) > MOST_REASONS)
    return "; ".join(shown) + more if shown else "the reasons were not logged"


def label(config: "TrainConfig", configs: list["TrainConfig"]) -> str:
    """What the progress of a run is called: its recipe, and its seed where there are several."""
    several = any(other.seed != config.seed for other in configs)
    return f"{config.recipe_name} seed {config.seed}" if several else config.recipe_name


def parse_recipes(texts: list[str]) -> list[str]:
    """The names between the commas, each once; `all` and `rivals` are several.

    Raises:
        ValueError: there is none.
    """
    from unitscale.train.named import expanded

    found = expanded(texts)
    if not found:
        raise ValueError(f"--recipes is {','.join(texts)!r}; expected names with commas between")
    return found


def parse_seeds(count: int) -> range:
    """The seeds 0 to `count - 1`.

    Raises:
        ValueError: fewer than one, or more than anyone waits for.
    """
    if not 1 <= count <= MOST_SEEDS:
        raise ValueError(f"--seeds is {count}; expected from 1 to {MOST_SEEDS}")
    return range(count)
