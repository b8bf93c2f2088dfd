"""`unitscale report`: the HTML report of what a run left behind. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from unitscale.cli.exit import WRONG_ARGUMENTS, fail
from unitscale.cli.output import show


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR",
            help="Folder of `compare` or `train`, or a numerics.jsonl of record.record.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write. Default: report.html in RUN_DIR.", show_default=False
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML file: a verdict in words, and charts to look into it.

    What was recorded (`--set record_every=50` of `train` and `compare`) is shown tensor by tensor.
    """
    from unitscale.report import write_report

    try:
        show(str(write_report(run_dir, out, products_of=products_of)))
    except (OSError, ValueError) as error:
        fail(str(error), code=WRONG_ARGUMENTS)


def products_of(recipe: str) -> Sequence[tuple[str, str, str, str]]:
    """The three products of a recipe; none for a name of another version."""
    from unitscale.recipes import RECIPES

    return RECIPES[recipe].products() if recipe in RECIPES else ()
