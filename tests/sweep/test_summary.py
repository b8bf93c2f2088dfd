"""What runs say together: groups, intervals, the best rate, and when no rate is best."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unitscale.sweep.figure import draw_rates
from unitscale.sweep.grid import grid_of
from unitscale.sweep.page import as_markdown
from unitscale.sweep.row import MEASURED, Count, base
from unitscale.sweep.summary import best_rows, rate_rows, summarize

Losses = dict[float, list[float | str]]


def rows(losses: dict[str, Losses], **fields: Any) -> Iterator[dict[str, Any]]:
    """Rows by recipe and rate; a word in place of a loss is the status of a run without one."""
    for recipe, by_lr in losses.items():
        for lr, found in by_lr.items():
            for seed, loss in enumerate(found):
                content = {"recipe": recipe, "lr": lr, "seed": seed} | fields
                (point,) = grid_of(content).points
                done = {"status": loss, "loss": None, "reason": "a|reason"}
                if not isinstance(loss, str):
                    done = {"status": "finished", "loss": loss, "reason": None}
                yield base(point, Count(10, 2)) | dict.fromkeys(MEASURED) | done


def test_best_rate_is_that_of_the_lowest_mean() -> None:
    (group,) = summarize(rows({"fp32": {0.1: [2.0, 2.2], 0.2: [1.9, 2.1], 0.4: [2.5, 2.5]}}))
    assert group.best is not None
    assert (group.best.lr, group.best.n, group.is_at_edge) == (0.2, 2, False)
    assert group.best.loss is not None
    assert group.best.loss.mean == pytest.approx(2.0)
    assert group.label == "fp32"


def test_rate_at_which_a_seed_diverged_is_not_best() -> None:
    (group,) = summarize(rows({"fp32": {0.1: [2.0, 2.2], 0.2: [1.0, "diverged"]}}))
    assert group.best is not None
    assert group.best.lr == 0.1
    assert group.rates[1].diverged == 1
    assert group.rates[1].n == 1
    assert group.is_at_edge


def test_one_lucky_seed_is_not_best_where_others_have_two() -> None:
    (group,) = summarize(rows({"fp32": {0.1: [2.0, 2.2], 0.2: [1.0, "failed"]}}))
    assert group.best is not None
    assert group.best.lr == 0.1


def test_no_rate_is_best_where_all_diverged(tmp_path: Path) -> None:
    (group,) = groups = summarize(rows({"fp32": {0.1: ["diverged"], 0.2: ["diverged"]}}))
    assert group.best is None
    assert not group.is_at_edge
    assert best_rows(groups)[0]["best lr"] == "–"
    draw_rates(groups, tmp_path / "lr.png", title="all diverged")


def test_groups_are_all_that_is_not_rate_or_seed() -> None:
    found = [
        *rows({"fp32": {0.1: [2.0]}, "fp8": {0.1: [2.0], 0.2: [1.9]}}, model={"width": 32}),
        *rows({"fp8": {0.1: [1.0]}}, model={"width": 64}),
        *rows({"fp8": {0.1: [1.0]}}, model={"width": 64}, steps=7),
    ]
    labels = [group.label for group in summarize(found)]
    assert labels == [
        "fp32, width 32, steps 1000",
        "fp8, width 32, steps 1000",
        "fp8, width 64, steps 1000",
        "fp8, width 64, steps 7",
    ]
    assert sum(row["n"] for row in rate_rows(summarize(found))) == len(found)


def test_page_says_n_and_why_runs_failed() -> None:
    found = list(rows({"fp32": {0.1: [2.0, 2.2, "failed"]}}))
    text = as_markdown(summarize(found), found, title="A sweep", planned=4)
    assert "3 of 4 runs have ended." in text
    assert "| fp32 | 0.1 | 2.1000 ± 1.2706 | 2 | 0 | 1 |  |" in text
    assert "failed | a\\|reason |" in text
    assert "--resume" in text


def test_page_of_no_run_has_no_table() -> None:
    assert "|" not in as_markdown([], [], title="A sweep", planned=4)


def test_many_groups_with_long_names_fit_into_the_figure(tmp_path: Path) -> None:
    sizes = [{"existing": "a_rather_long_module:Factory", "model": {"n": n}} for n in range(30)]
    found = [row for size in sizes for row in rows({"fp32": {0.1: [2.0]}}, **size)]
    draw_rates(summarize(found), tmp_path / "lr.png", title="a title")


def test_figure_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    groups = summarize(rows({"fp32": {0.1: [2.0, 2.2], 0.2: ["diverged", 1.0]}, "fp8": {1: [2.0]}}))
    draw_rates(groups, tmp_path / "lr.png", title="a title")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
