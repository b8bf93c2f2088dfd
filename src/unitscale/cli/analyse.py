"""`unitscale analyse`: the scales of a user's own model, before and after units."""

import json as json_module
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli.exit import FAILED, checking_arguments, fail
from unitscale.cli.option import Device, Dtype, Json, given_path
from unitscale.cli.output import fits, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unitscale.recipes import Recipe

DTYPE_NAMES = ("fp32", "bf16")
WINDOW = 64
"""Bytes of the text that a model alone is given, at most."""

NAME_WIDTH = 40
"""Characters to which the name of a product may be cut in a table."""


def analyse(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="A function without arguments, also as FILE.py:FACTORY; or gpt2 or llama, of "
            "transformers.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="FOLDER",
            help="Folder for report.html and results.json.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Tensors to print; the report has all.")] = 20,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="all|rivals|RECIPE,...",
            help="Say also what each of these recipes would make of every product. Repeatable, or "
            "with commas; MODULE:NAME or FILE.py:NAME for one's own.",
            show_default=False,
        ),
    ] = None,
    suggest_skip: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Name the modules to keep in full precision under this recipe (or one's own, as "
            "MODULE:NAME or FILE.py:NAME), for skip=.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Share of the multiply-adds that the recipe rounds, from 0 to 1, that "
            "--suggest-skip may keep. Default: 0.1."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="Seed of all that FACTORY and the model draw: weights, inputs, dropout.",
        ),
    ] = 0,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    json: Json = False,
) -> None:
    """Run one training step of a model and show the scale of every tensor and gradient.

    FACTORY returns `model, inputs`, where `model(*inputs)` (inputs a tuple), `model(**inputs)` (a
    dict) or `model(inputs)` gives the loss, or an object that has it as `.loss`; or `model, inputs,
    loss_fn`, where `loss_fn(output)` gives it; or a model alone, if it predicts the next byte.

    The tables show the RMS before and after `unitscale.unit_scale`, what stays as it is and why,
    and the share of elements that FP8 and FP16 would flush to zero or saturate.
    """
    with ExitStack() as held:
        with checking_arguments():
            if rows < 0:
                raise ValueError(f"--rows is {rows}; expected at least 0")
            if budget is not None and not 0 <= budget <= 1:
                raise ValueError(f"--budget is {budget}; expected a share from 0 to 1")
            if budget is not None and suggest_skip is None:
                raise ValueError("--budget is of --suggest-skip, which is not given; add it")
            asked = asked_recipes(what_if or [], suggest_skip)
            from unitscale.models.existing import find_factory
            from unitscale.recipes import RECIPES

            factory = find_factory(model)
            if out is not None:
                from unitscale.train.run_folder import make_folder
                from unitscale.train.unbegun import made_for_this

                held.enter_context(made_for_this(out))
                make_folder(out)
            if dtype not in DTYPE_NAMES:
                raise ValueError(f"--dtype is {dtype!r}; expected one of {', '.join(DTYPE_NAMES)}")
            from unitscale.train.device import resolve

            place = resolve(device)
        results = run(model, factory, place, dtype, asked, seed=seed)
        if own := {r.name: str(r) for r in asked if r.name not in RECIPES}:
            results["recipes"] = own  # which nobody else knows
        if suggest_skip is not None:
            results["suggest_skip"] = suggestion(
                results, suggest_skip, 0.1 if budget is None else budget
            )
        if out is not None:
            from unitscale.report.analysis import write_analysis
            from unitscale.train.run_folder import write_json

            with checking_arguments():
                write_json(out / "results.json", results)
                write_analysis(results, out / "report.html")
        if json:
            print(json_module.dumps(results, indent=2))
            return
        print_tables(results, rows, out)


def asked_recipes(what_if: list[str], skip_for: str | None) -> "list[Recipe]":
    """The recipes of --what-if and of --suggest-skip.

    Raises:
        ValueError: an unknown recipe, or one that is named twice.
    """
    from unitscale.train.named import GROUPS, expanded, find_recipe, refuse_throughout

    names = [name.strip() for text in what_if for name in text.split(",")]
    single = [name for name in names if name not in GROUPS]
    for index, name in enumerate(single):
        if name in single[:index]:
            raise ValueError(f"--what-if names {name!r} twice; name each recipe once")
    asked = {name: find_recipe(name) for name in single}
    for name in expanded(set(names) & GROUPS.keys()):
        if find_recipe(name).rounds:
            asked.setdefault(name, find_recipe(name))
    if skip_for is not None:
        asked.setdefault(skip_for, find_recipe(skip_for))
    refuse_throughout(asked.values(), "analyse")
    found: dict[str, Recipe] = {}
    for recipe in asked.values():
        if found.setdefault(recipe.name, recipe) != recipe:
            raise ValueError(
                f"two of the recipes are called {recipe.name!r}; give one another name"
            )
    return list(found.values())


def suggestion(results: dict[str, Any], name: str, budget: float) -> dict[str, Any]:
    """The modules to keep in full precision; exit code 1 if nothing can be said of the recipe.

    Shares are of the multiply-adds that the recipe rounds; `rounded_share` is the share of those in
    the whole model, `smallest_share` the least that a module has, and `gains` what each pattern is
    predicted to save.
    """
    from dataclasses import asdict

    from unitscale.record.skip import candidates, gains, suggest_skip
    from unitscale.train.named import find_recipe

    rows, recipe = results["what_if"], find_recipe(name).name
    try:
        patterns = suggest_skip(rows, recipe, budget=budget)
        shares = {c.pattern: c.share for c in candidates(rows, recipe)}
    except ValueError as error:
        fail(str(error), code=FAILED)
    macs = {row["what_if"]: row["macs"] for row in rows}
    rounded = {r["what_if"]: r["macs"] for r in rows if "why" not in r["recipes"][recipe]}
    return {
        "recipe": recipe,
        "budget": budget,
        "skip": patterns,
        "gains": [asdict(gain) for gain in gains(rows, recipe, patterns)],
        "share_of_multiply_adds": sum(shares[pattern] for pattern in patterns),
        "rounded_share": sum(rounded.values()) / (sum(macs.values()) or 1),
        "smallest_share": min(shares.values(), default=None),
    }


def run(
    name: str,
    factory: Any,
    device: str,
    dtype: str,
    asked: "Sequence[Recipe]" = (),
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """The analysis of what the factory makes; failures are one line and an exit code.

    Model and inputs are moved to the device, and floating-point ones to the dtype. `asked` are the
    recipes of --what-if.
    """
    from unitscale.data import fixed_windows, open_corpus
    from unitscale.models.next_byte import as_loss
    from unitscale.models.positions import positions_of
    from unitscale.models.seeded import seed_all
    from unitscale.record.analysis import AnalysisError, analyse, failing, subject_of
    from unitscale.train.device import DTYPES, find_device
    from unitscale.train.loop import to_inputs

    place = find_device(device)

    def on_text(alone: Any) -> tuple[Any, Any]:
        length = 1 + min(WINDOW, positions_of(alone) or WINDOW)
        windows = fixed_windows(open_corpus().train, count=4, length=length)
        return as_loss(alone, name), to_inputs(windows, place)

    seed_all(seed)
    try:
        with failing(f"{name} failed"):
            made = factory()
        with checking_arguments():  # a model that is compiled already is one, too
            subject = subject_of(made, on_text)
            moved = subject.to(place, DTYPES[dtype])
            return analyse(moved, asked) | {"model": name}
    except AnalysisError as error:
        fail(str(error), code=FAILED)


def print_tables(results: dict[str, Any], rows: int, out: Path | None) -> None:
    """The summary, and the tensors that are furthest from 1."""
    from unitscale.report import analysis, plain_table

    tables = [analysis.range_rows(results), analysis.loss_rows(results)]
    tables += [analysis.left_rows(results), analysis.tensor_rows(results, rows)]
    show(analysis.caption(results), *(plain_table(table) for table in tables if table))
    hidden = len(results["tensors"]) - rows
    if hidden > 0:
        where = f"{out / 'report.html'} has" if out else "--json, --out or --rows show"
        first = "tensor" if rows == 1 else f"{rows} tensors"
        show(f"the {first} furthest from 1; {where} the other {hidden} too")
    if "what_if" in results:
        show_what_if(results, rows)


def show_what_if(results: dict[str, Any], rows: int) -> None:
    """What other recipes would do, in words and two tables, and the modules to skip.

    The second has a column for each recipe, and is left out where they have no room.
    """
    from unitscale.report import analysis, plain_table

    if recipes := analysis.recipe_rows(results):
        show(plain_table(recipes))
    products = analysis.product_rows(results, rows)
    if products and fits(products, NAME_WIDTH):
        show(plain_table(products))
    elif products:
        show(
            f"{len(recipes)} recipes have no room side by side here; name fewer with --what-if for "
            "a row of each product, or see report.html of --out, which has them all"
        )
    for sentence in analysis.what_if_sentences(results):
        show(sentence)
    found = results.get("suggest_skip")
    if found is not None:
        if found["skip"]:
            show(plain_table(analysis.gain_rows(found)))
        show(analysis.skip_sentence(found))
