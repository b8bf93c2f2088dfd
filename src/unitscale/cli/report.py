"""`unitscale report`: the HTML report of what a run left behind. Imports no torch."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli.exit import code_of, fail
from unitscale.cli.option import Json
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.report.folder import Contents
    from unitscale.report.recording import Series


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR",
            help="Folder of `compare` or `train`, or a file of record.record (.jsonl, .parquet).",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write. Default: report.html in RUN_DIR, or beside the file.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML file: a verdict in words, and charts to look into it.

    What was recorded (`--set record_every=50` of `train` and `compare`) is shown tensor by tensor.
    """
    from unitscale.report.extra import imported
    from unitscale.report.folder import read_contents, report_path, write_contents

    path = out or report_path(run_dir)
    try:
        imported("plotly")
        contents = read_contents(run_dir)
        write_contents(contents, path)
    except (OSError, ValueError) as error:
        fail(str(error), code=code_of(error))
    if json:
        print(json_module.dumps({"report": str(path), **described(contents)}, indent=2))
        return
    show(str(path))


def described(contents: "Contents") -> dict[str, Any]:
    """What the page says in words and tables, as JSON has it."""
    from unitscale.report.summary import outcome, summarize_results
    from unitscale.report.verdict import judge

    summaries = [] if contents.results is None else summarize_results(contents.results)
    verdicts = []
    for recording in contents.recordings:
        verdict = judge(recording)
        blank = verdict.blank
        verdicts.append(
            {
                "run": recording.label,
                "verdict": verdict.paragraph,
                "operands": verdict.judged,
                "losses": [
                    asdict(loss) | {"series": named(loss.series)} for loss in verdict.losses
                ],
                "jumps": [asdict(jump) | {"series": named(jump.series)} for jump in verdict.jumps],
                "blank": blank and asdict(blank) | {"series": named(blank.series)},
            }
        )
    return {
        "outcome": outcome(summaries),
        "summary": [asdict(summary) for summary in summaries],
        "losses_blank_from_step": {
            curve.recipe: curve.first_blank
            for curve in contents.curves
            if curve.first_blank is not None
        },
        "verdicts": verdicts,
    }


def named(series: "Series") -> dict[str, str]:
    """A tensor without its rows."""
    return {"name": series.name, "op": series.op, "direction": series.direction}
