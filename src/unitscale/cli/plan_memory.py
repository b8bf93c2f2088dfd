"""`unitscale plan-memory`: bytes per process of a run on paper."""

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli import option
from unitscale.cli.exit import checking_arguments, running
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.memory.plan import Plan, Sizes
    from unitscale.memory.source import Source
    from unitscale.recipes import Recipe

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
MOST = 2**24
"""Of ranks, sequences and tokens: more is a slip of the keyboard."""


def plan_memory(
    config: Annotated[
        Path | None,
        typer.Option(
            parser=option.given_path,
            metavar="FILE|FOLDER",
            help="A config.json of transformers, or the folder that has it: the shape of the "
            "model. Give this or --model.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Instead of --config: gpt2, llama, MODULE:FACTORY or FILE.py:FACTORY; its "
            "arguments by --set model.NAME=VALUE.",
            show_default=False,
        ),
    ] = None,
    ranks: Annotated[int, typer.Option(help="Processes, one for each device.")] = 1,
    recipe: Annotated[
        str, typer.Option(help="Recipes, with commas between them, or `rivals` or `all`.")
    ] = "fp8",
    states: Annotated[
        str,
        typer.Option(
            help="How the optimizer holds moments and master weights, with commas between them: "
            "fp32, fp8-lm, coat, bf16-stochastic and master24 (the last two with --dtype bf16), "
            "or `all` that --dtype allows."
        ),
    ] = "fp32",
    sharding: Annotated[
        str,
        typer.Option(
            help="What processes share: fsdp (weights, gradients, states), zero2 (gradients, "
            "states), zero1 (states) or ddp (nothing)."
        ),
    ] = "fsdp",
    micro_batch: Annotated[int, typer.Option(help="Sequences in a micro-batch of a process.")] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096,
    dtype: Annotated[
        str,
        typer.Option(
            help="What parameters and gradients are held in: bf16 or fp32. What a recipe does not "
            "round is computed in it too, whatever the recipe's name."
        ),
    ] = "bf16",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the factory of --model, as model.NAME=VALUE. Repeatable.",
            show_default=False,
        ),
    ] = None,
    json: option.Json = False,
) -> None:
    """Print the bytes that each process of a training run would hold, by kind.

    Nothing is trained, and the model takes no memory: it has shapes and no numbers. What is kept
    for backward is seen on the graph that the recipe really runs.
    """
    from unitscale.cli.compare import parse_recipes
    from unitscale.memory.states import STATES, state_bytes
    from unitscale.train.named import find_recipe, refuse_throughout

    with checking_arguments():
        recipes = [find_recipe(name) for name in parse_recipes([recipe])]
        refuse_throughout(recipes, "plan-memory")
        names = list(STATES) if states == "all" else [name.strip() for name in states.split(",")]
        check_counts(ranks, micro_batch, sequence_length, sharding, dtype)
        if states == "all":
            if without := [name for name in names if dtype not in STATES[name].weight]:
                print(
                    f"left out, for other weights than {dtype}: {', '.join(without)}",
                    file=sys.stderr,
                )
            names = [name for name in names if name not in without]
        for name in names:
            state_bytes(name, dtype)
        source = source_of(config, model, settings, dtype, sequence_length)
        sizes = sizes_of_source(source, recipes)
    with running():
        from unitscale.memory.plan import kept_at
        from unitscale.memory.plan import plan_memory as planned

        plans = []
        for found in recipes:
            if len(recipes) > 1:
                print(f"following {found.name}", file=sys.stderr, flush=True)
            kept = kept_at(source, found, length=sequence_length, total=sizes.total)
            plans += [
                planned(
                    sizes,
                    kept,
                    recipe=found.name,
                    states=name,
                    dtype=dtype,
                    ranks=ranks,
                    micro_batch=micro_batch,
                    sharding=sharding,  # type: ignore[arg-type]
                )
                for name in names
            ]
        head: dict[str, Any] = {
            "model": source.name,
            "parameters": sizes.total,
            "ranks": ranks,
            "sharding": sharding,
            "micro_batch": micro_batch,
            "sequence_length": sequence_length,
            "dtype": dtype,
        }
        if json:
            listed = [p.to_json() | {"held_in": held_in(p.states, dtype)} for p in plans]
            print(json_module.dumps(head | {"plans": listed}, indent=2))
            return
        from unitscale.report import plain_table
        from unitscale.report.wording import plural

        size, unit = unit_for(max(plan.total for plan in plans))
        show(
            f"{source.name}: {sizes.total:,} parameters and their gradients in {dtype}, "
            f"{plural(ranks, 'rank')} ({sharding}), micro-batch {micro_batch} x {sequence_length}; "
            f"{unit} on each rank",
            plain_table([row_of(plan, size) for plan in plans]),
            *legend(recipes, names, dtype),
        )


def check_counts(
    ranks: int, micro_batch: int, sequence_length: int, sharding: str, dtype: str
) -> None:
    """Raise ValueError for a number or a name that no plan can have."""
    counts = {"--ranks": ranks, "--micro-batch": micro_batch, "--sequence-length": sequence_length}
    for name, count in counts.items():
        if not 1 <= count <= MOST:
            raise ValueError(f"{name} is {count}; expected from 1 to {MOST}")
    for name, text, known in (
        ("--sharding", sharding, ("fsdp", "zero2", "zero1", "ddp")),
        ("--dtype", dtype, ("bf16", "fp32")),
    ):
        if text not in known:
            raise ValueError(f"{name} is {text!r}; expected one of {', '.join(known)}")


def source_of(
    config: Path | None, model: str | None, settings: list[str] | None, dtype: str, length: int
) -> "Source":
    """The model that the options name.

    Raises:
        ValueError: none or two of them, a file that is no configuration, an unknown factory.
        OSError: the file cannot be read.
    """
    from unitscale.models.existing import BUILT_IN, find_factory, is_existing

    if (config is None) == (model is None):
        raise ValueError("expected one of --config FILE and --model NAME")
    options: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals or not key.startswith("model."):
            raise ValueError(f"--set {setting}: expected model.NAME=VALUE")
        options[key.removeprefix("model.")] = option.parse_value(text)
    if config is not None:
        if options:
            raise ValueError("--set is for --model; change the file of --config instead")
        from unitscale.memory.source import Source, read_config
        from unitscale.models.positions import POSITIONS

        found = read_config(config)
        for name in POSITIONS:
            check_positions(found.get(name), name, length)
        return Source(name=config.resolve().name, dtype=dtype, config=found)
    assert model is not None
    if not is_existing(model):
        raise ValueError(f"--model is {model!r}; expected gpt2, llama or MODULE:FACTORY")
    if model in BUILT_IN:
        options = {"context": length} | options
    find_factory(model, options)
    from unitscale.memory.source import Source

    if model in BUILT_IN:
        check_positions(options["context"], "--set model.context", length)
    return Source(name=model, dtype=dtype, factory=model, options=options)


def check_positions(positions: Any, where: str, length: int) -> None:
    """Raise ValueError for a sequence that is longer than the model's table of positions."""
    if isinstance(positions, int) and length > positions:
        raise ValueError(
            f"--sequence-length is {length}, and the model has {positions} positions ({where}); "
            "use a shorter sequence, or a model of more positions"
        )


def sizes_of_source(source: "Source", recipes: "Sequence[Recipe]" = ()) -> "Sizes":
    """The parameters of the model.

    Raises:
        ValueError: it cannot be built, or a recipe names modules that it has not.
    """
    from unitscale.memory.plan import sizes_at
    from unitscale.train.initial import ModelError

    try:
        return sizes_at(source, recipes=recipes)
    except ModelError as error:
        raise ValueError(str(error)) from error


def held_in(states: str, dtype: str) -> dict[str, str]:
    """The formats of what a plan counts beside activations, by kind, in words."""
    from unitscale.memory.states import state_formats

    return {"weights": dtype, "gradients": dtype, **state_formats(states, dtype)}


def legend(recipes: Sequence["Recipe"], states: Sequence[str], dtype: str) -> list[str]:
    """What the names in the table stand for: `fp32` is a recipe and the states of an optimizer."""
    plain = [recipe.name for recipe in recipes if not recipe.rounds]
    lines = [
        f"recipe {name}: rounds nothing; products and activations are in {dtype}" for name in plain
    ]
    for name in states:
        found = held_in(name, dtype)
        lines.append(f"states {name}: master ({found['master']}); moments ({found['moments']})")
    return lines


def unit_for(largest: float) -> tuple[float, str]:
    """The unit in which a number of bytes is at least one, and its name."""
    found = next((unit for unit in UNITS if largest >= unit[0]), UNITS[-1])
    return found[0], f"{found[1]} ({found[0]:.0e} bytes)"


def row_of(plan: "Plan", size: float) -> dict[str, Any]:
    """A plan as a row of a table, in units of `size` bytes."""
    from unitscale.memory.plan import KINDS

    found = {kind: f"{getattr(plan, kind) / size:.2f}" for kind in KINDS if kind != "units"}
    units = {"units, kB": f"{plan.units / 1e3:.1f}"}
    name = {"recipe": plan.recipe, "states": plan.states}
    return {**name, **found, **units, "total": f"{plan.total / size:.2f}"}
