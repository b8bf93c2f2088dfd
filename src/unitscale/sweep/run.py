"""A sweep from its first run to its last table. Every row is read from the folder of its run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from unitscale.report.atomic import write_text
from unitscale.sweep.cores import Share
from unitscale.sweep.figure import draw_rates
from unitscale.sweep.folder import FIGURE, PAGE, SUMMARY, WORKERS_LOG
from unitscale.sweep.page import as_markdown
from unitscale.sweep.point import Point
from unitscale.sweep.pool import StoppedError, run_points
from unitscale.sweep.row import Count, Row, failed, row_of, write_rows
from unitscale.sweep.summary import summarize
from unitscale.train.interrupt import StopRequest
from unitscale.train.run_folder import CheckpointError, write_json

OnRow = Callable[[Row], None]


def run_claimed_sweep(
    points: Sequence[Point],
    counts: Mapping[str, Count],
    out: Path,
    *,
    data: Path | None,
    title: str,
    share: Share,
    stop: StopRequest,
    on_row: OnRow = lambda row: None,
    on_step: Callable[[Point, int], None] = lambda point, step: None,
) -> list[Row]:
    """Make the runs that are not done, in a folder that the caller holds; the rows of all.

    Rows are written whenever a run ends, tables and the figure at the end. A run that failed is a
    row with its reason, and is made again by the next call; one that diverged is done.

    Args:
        counts: the parameters of each point's model, by the point's name.
        on_row: called with every row, those of runs that were done before first.

    Raises:
        KeyboardInterrupt: stopped by a signal; tables say what is done.
        OSError: a file cannot be written.
    """
    rows: dict[str, Row] = {}

    def add(row: Row) -> None:
        rows[row["name"]] = row
        on_row(row)

    def ordered() -> list[Row]:
        return [rows[point.name] for point in points if point.name in rows]

    waiting = []
    for point in points:
        row = read_row(point, counts[point.name], out)
        if row is None:
            waiting.append(point)
        else:
            add(row)
    write_rows(out, ordered())
    try:
        ended = run_points(
            waiting,
            out,
            data=data,
            share=share,
            log=out / WORKERS_LOG,
            stop=stop,
            on_step=on_step,
        )
        with closing(ended):
            for point, reason in ended:
                count = counts[point.name]
                row = failed(point, count, reason) if reason else read_row(point, count, out)
                add(row or failed(point, count, "it ended without a result"))
                write_rows(out, ordered())
    except StoppedError:
        write_results(out, ordered(), title, len(points))
        raise KeyboardInterrupt(f"stopped after {len(rows)} of {len(points)} runs") from None
    write_results(out, ordered(), title, len(points))
    return ordered()


def read_row(point: Point, count: Count, out: Path) -> Row | None:
    """The row of a run as its folder has it: a damaged one has failed, one under way has none."""
    try:
        return row_of(point, point.folder(out), count)
    except CheckpointError as error:
        return failed(point, count, str(error))


def write_results(out: Path, rows: Sequence[Row], title: str, planned: int) -> None:
    """Write summary.json, results.md and, if any run ended, lr.png."""
    groups = summarize(rows)
    write_json(out / SUMMARY, results_of(rows, title, planned))
    write_text(out / PAGE, as_markdown(groups, rows, title=title, planned=planned))
    if any(rate.loss is not None for group in groups for rate in group.rates):
        draw_rates(groups, out / FIGURE, title=title)


def results_of(rows: Sequence[Row], title: str, planned: int) -> dict[str, Any]:
    """What summary.json holds."""
    return {
        "title": title,
        "runs_planned": planned,
        "runs_done": len(rows),
        "groups": [group.to_json() for group in summarize(rows)],
    }
