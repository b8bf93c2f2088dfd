"""`unitscale doctor`: what this machine can run, and why; whether FP8 can pay for some shapes."""

import json as json_module
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli import option
from unitscale.cli.exit import checking_arguments
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.recipes import Recipe

PANEL = "Can FP8 pay?"
ROWS, MOST_ROWS = 8192, 2**40


def doctor(
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MxKxN",
            help="Linear layers of M rows (tokens), K features in and N out: can FP8 pay for them? "
            "Repeatable, or with commas.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The products of a model with its weights: gpt2 or llama of transformers, "
            "MODULE:FACTORY or FILE.py:FACTORY. It is made without values, and not run.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="With --model, rows of every layer: sequences times their length. Default: 8192.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the model's factory, as in `--set model.width=4096`. Repeatable.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Not with --shapes or --model: show this recipe alone, by name, or one's own as "
            "MODULE:NAME or FILE.py:NAME. Repeatable, or with commas.",
            show_default=False,
        ),
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            help="The device that is meant: h100, h100-pcie, h200, b200, l40s, rtx4090, a100, "
            "mi300x or mi355x. Default: that of this machine, or else h100.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    json: option.Json = False,
) -> None:
    """Show what this machine can run: devices, compilers, and how each recipe is multiplied.

    `scaled_mm` is the product of FP8 hardware, `bf16` a BF16 product of FP8 values, which are exact
    in BF16; `emulated` rounds the operands and multiplies in the dtype of the model. With --shapes
    or --model instead: whether FP8 can be faster than BF16 for these layers at all, and why not.
    """
    if shapes or model is not None:
        with checking_arguments():
            if recipes:
                raise ValueError("--recipe does not go with --shapes or --model; leave it out")
            found = weighed(shapes or [], model, tokens, settings or [], device_name)
        if json:
            print(json_module.dumps(found, indent=2))
            return
        show_weighed(found)
        return
    with checking_arguments():
        refuse_ignored("--shapes or --model", device_name=device_name)
        refuse_ignored("--model", set=settings, tokens=tokens)
        from unitscale.train.named import expanded, find_recipe, refuse_throughout

        chosen = [find_recipe(name) for name in expanded(recipes or [])]
        refuse_throughout(chosen, "doctor")
    found = examined(chosen)
    if json:
        print(json_module.dumps(found, indent=2))
        return
    show(*lines(found), *recipe_lines(found["recipes"]))


def examined(chosen: "list[Recipe]") -> dict[str, Any]:
    """What this machine can run; with some recipes, of those alone."""
    import torch

    from unitscale.units.doctor import examine, recipe_row

    found = examine()
    if chosen:
        device = torch.device(found["device"])
        found["recipes"] = [recipe_row(recipe, device) for recipe in chosen if recipe.rounds]
    return found


def refuse_ignored(what: str, **given: Any) -> None:
    """Refuse options that would be ignored.

    Args:
        what: the option that they go with, which is not given.
        given: values by name; None and [] were not given.
    Raises:
        ValueError: one of them was given.
    """
    for name, value in given.items():
        if value not in (None, []):
            raise ValueError(f"--{name.replace('_', '-')} goes with {what}, which is not given")


def weighed(
    shapes: list[str],
    model: str | None,
    tokens: int | None,
    settings: list[str],
    device_name: str | None,
) -> dict[str, Any]:
    """What FP8 costs and saves for these shapes and the layers of this model.

    Raises:
        ValueError: a shape is none, no such model or device, or an argument would be ignored.
    """
    from unitscale.gemm.payoff import parse_shape
    from unitscale.units.weigh import model_on_paper, speaks_for, weigh
    from unitscale.units.weight import weights_of

    speaks_for(device_name)
    texts = [text for given in shapes for text in given.split(",")]
    layers = [("", parse_shape(text)) for text in texts]
    if model is None:
        refuse_ignored("--model", set=settings, tokens=tokens)
        return weigh(layers, device_name)
    rows = ROWS if tokens is None else tokens
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"--tokens is {rows}; expected from 1 to 2^40")
    options = factory_options(settings)
    factory = factory_of(model, options)
    found = weights_of(model_on_paper(partial(factory, **options)), rows)
    if not found.layers:
        why = f" ({found.left_out[0].name}: {found.left_out[0].why})" if found.left_out else ""
        raise ValueError(
            f"--model {model} has no linear layer{why}; give sizes with --shapes MxKxN"
        )
    left_out = [asdict(one) | {"elements": one.elements} for one in found.left_out]
    return weigh([*layers, *found.layers], device_name) | {
        "elements": found.elements,
        "left_out": left_out,
    }


def factory_options(settings: list[str]) -> dict[str, Any]:
    """The arguments that `--set model.NAME=VALUE` gives a factory.

    Raises:
        ValueError: a setting is something else.
    """
    options = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        name = key.removeprefix("model.")
        if not equals or name == key or not name:
            raise ValueError(f"--set {setting}: expected model.NAME=VALUE")
        options[name] = option.parse_value(text)
    return options


def factory_of(model: str, options: dict[str, Any]) -> Any:
    """What makes the model.

    Raises:
        ValueError: there is none.
    """
    from unitscale.models.existing import find_factory, is_existing

    if not is_existing(model):
        raise ValueError(
            f"--model is {model!r}; expected gpt2, llama, MODULE:FACTORY or FILE.py:FACTORY"
        )
    return find_factory(model, options)


def show_weighed(found: dict[str, Any]) -> None:
    """The verdict on each shape, with the numbers that it rests on.

    In the table a way to make FP8 operands is a column, with its speedup over BF16 on paper;
    "torchao takes" names the recipes for which torchao's automatic filter would take the layer.
    """
    from unitscale.report import plain_table

    show(
        f"Can FP8 pay on one {found['device']} ({found['decided']})?",
        f"On paper: {found['assumed']}.",
        f"Source: {found['source']}. Below, speedups over BF16, forward and backward, by where "
        "scales come from: units (or earlier steps), or values of now, by tensor, row or block.",
        plain_table([shape_row(row) for row in found["shapes"]]),
    )
    for row in found["shapes"]:
        names = f" ({layers_of(row)})" if row["layers"] else ""
        why = row["why"][0].upper() + row["why"][1:]
        show(f"{row['shape']}{names}: {row['verdict'].upper()}. {why}.")
    if sum(row["count"] for row in found["shapes"]) > 1:
        show(total_line(found))
    show(*left_out_lines(found.get("left_out", []), found.get("elements", 0)))


def shape_row(row: dict[str, Any]) -> dict[str, Any]:
    """One row of the table: the three products, forward and backward."""
    times = {"BF16 us": row["bf16_s"], "FP8 us": row["fp8_s"]}
    cells = {name: "-" if t is None else micro(t) for name, t in times.items()}
    speedups = {
        name: "-" if value is None else f"{value:.2f}x" for name, value in row["speedup"].items()
    }
    taken = [name for name, is_taken in row["torchao_converts"].items() if is_taken]
    return {
        "MxKxN": row["shape"],
        "layers": str(row["count"]),
        **cells,
        **speedups,
        "torchao takes": "both" if len(taken) == 2 else "".join(taken) or "none",
        "pays": row["verdict"],
    }


def micro(seconds: float) -> str:
    """Microseconds, with three digits of what is short."""
    return f"{seconds * 1e6:,.1f}" if seconds >= 1e-4 else f"{seconds * 1e6:.3g}"


def layers_of(row: dict[str, Any]) -> str:
    """The names of the layers, or the first of many."""
    names = row["layers"]
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"


def total_line(found: dict[str, Any]) -> str:
    """All layers together."""
    ways = {name: value for name, value in found["total"].items() if name != "bf16_s"}
    parts = (
        f"{name} {value['everywhere']:.2f}x everywhere, "
        + (
            f"{value['where yes']:.2f}x where it pays"
            if any(one["verdict"] == "yes" for one in found["shapes"])
            else "and no layer where it pays"
        )
        for name, value in ways.items()
    )
    return f"All layers together, products and passes alone: {'; '.join(parts)}."


def left_out_lines(left_out: list[dict[str, Any]], elements: int) -> list[str]:
    """What of a model is not in the table, by reason."""
    by_why: dict[str, list[dict[str, Any]]] = {}
    for one in left_out:
        by_why.setdefault(one["why"], []).append(one)
    total = elements + sum(one["elements"] for one in left_out)
    found = []
    for why, members in by_why.items():
        share = sum(one["elements"] for one in members) / total
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        found.append(
            f"Left out: {members[0]['name']} {list(members[0]['shape'])}{more}, {share:.1%} of the "
            f"weights: {why}."
        )
    return found


def recipe_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each recipe, those together that are multiplied so for the same reason."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["why"], []).append(row)
    found = []
    for why, members in groups.items():
        found.append(f"  {why}:")
        found += [f"    {recipe_line(row)}" for row in members]
    return found


def recipe_line(row: dict[str, Any]) -> str:
    """What multiplies a recipe's products, in models of both dtypes."""
    parts = []
    for name, products in row["products"].items():
        by = list(dict.fromkeys(one["by"] for one in products))
        if len(by) > 1:
            by = [f"{one['product']} {one['by']}" for one in products]
        parts.append(f"{', '.join(by)} in a {name}")
    if len({part.split(" in a ")[0] for part in parts}) == 1:
        parts = [parts[0].split(" in a ")[0]]
    return f"{row['recipe']:<18} {'; '.join(parts)}"


def lines(found: dict[str, Any]) -> list[str]:
    """What is not about recipes."""
    cpu, bf16, compilers = found["cpu"], found["bf16_products"], found["compilers"]
    gpus = [
        f"gpu {index}: {gpu['name']}, compute capability {gpu['compute_capability']}, "
        f"{gpu['gigabytes']} GB"
        for index, gpu in enumerate(found["gpus"])
    ]
    missing = "none found: use --inner eager, or install one"
    return [
        f"unitscale {found['unitscale']}, torch {found['torch']}, Python {found['python']}",
        f"cpu: {cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads, "
        f"{cpu['instructions']}{', avx512_bf16' * cpu['avx512_bf16']}{', AMX' * cpu['amx']}",
        *(gpus or ["gpu: none that torch sees"]),
        f"BF16 products on {found['device']}: {bf16['speed']} times as fast as FP32 "
        f"(measured just now); {bf16['why']}",
        f"FP8 products on {found['device']}: {found['fp8_products']['why']}",
        compilation(found["compilation"]),
        f"C++ compiler of inductor: {compilers['c++'] or missing}",
        f"triton, its compiler for a GPU: {compilers['triton'] or 'not installed'}",
        f"recipes on {found['device']}, and what says so (of a float32 model):",
    ]


def compilation(found: dict[str, Any]) -> str:
    """Whether a recipe can hold at all."""
    if not found["enabled"]:
        return (
            f"torch.compile: DISABLED: {found['why']}. No recipe holds in this process: every "
            "model trains in full precision. Unset it."
        )
    return f"torch.compile: on; {found['why']}"
