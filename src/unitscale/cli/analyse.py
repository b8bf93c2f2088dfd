"""`unitscale analyse`: the scales of a user's own model, before and after units."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from unitscale.cli.exit import FAILED, checking_arguments, fail
from unitscale.cli.option import Json
from unitscale.cli.output import show


def analyse(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="A function without arguments; or gpt2 or llama, of transformers.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html and results.json.", show_default=False),
    ] = None,
    rows: Annotated[int, typer.Option(help="Tensors to print; the report has all.")] = 20,
    json: Json = False,
) -> None:
    """Run one training step of a model and show the scale of every tensor and gradient.

    FACTORY returns `model, inputs`, where `model(*inputs)` (inputs a tuple), `model(**inputs)` (a
    dict) or `model(inputs)` gives the loss, or an object that has it as `.loss`; or `model, inputs,
    loss_fn`, where `loss_fn(output)` gives it; or a model alone, if it predicts the next byte.

    The tables show the RMS before and after `unitscale.unit_scale`, what stays as it is and why,
    and the share of elements that FP8 and FP16 would flush to zero or saturate.
    """
    with checking_arguments():
        if rows < 0:
            raise ValueError(f"--rows is {rows}; expected at least 0")
        from unitscale.models.existing import find_factory

        factory = find_factory(model)
        if out is not None:
            from unitscale.train.run_folder import make_folder

            make_folder(out)
    results = run(model, factory)
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


def run(name: str, factory: Any) -> dict[str, Any]:
    """The analysis of what the factory makes; failures are one line and an exit code."""
    from unitscale.data import fixed_windows, open_corpus
    from unitscale.models.next_byte import as_loss
    from unitscale.record.analysis import AnalysisError, analyse, failing, subject_of
    from unitscale.train.loop import to_inputs

    batch = to_inputs(fixed_windows(open_corpus().train, count=4, length=65))
    try:
        with failing(f"{name} failed"):
            made = factory()
        with checking_arguments():  # a model that is compiled already is one, too
            subject = subject_of(made, lambda alone: (as_loss(alone, name), batch))
            return analyse(subject) | {"model": name}
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
        show(f"the {rows} tensors furthest from 1; {where} the other {hidden} too")
