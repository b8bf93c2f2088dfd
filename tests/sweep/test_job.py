"""Runs of a sweep by other engines: the same folders, the same rows."""

from pathlib import Path
from typing import Any

import pytest

from train.tiny import text_corpus
from unitscale.sweep.count import count_of
from unitscale.sweep.grid import grid_of
from unitscale.sweep.job import point_of, run_point, submit, trainable
from unitscale.sweep.row import row_of

TINY: dict[str, Any] = {
    "recipe": "fp32",
    "steps": 3,
    "batch_size": 4,
    "sequence_length": 16,
    "eval_windows": 8,
    "model": {"width": 32, "depth": 1},
}


class Now:
    """An executor that runs its jobs at once."""

    def map_array(self, make: Any, points: Any) -> list[Any]:
        return [make(point) for point in points]


def test_jobs_leave_the_folders_of_a_sweep(tmp_path: Path) -> None:
    text = text_corpus(tmp_path).train.pieces[0].path
    grid = grid_of(TINY | {"data": text.name, "lr": [0.01, 0.02]}, beside=tmp_path)
    rows = submit(grid, tmp_path / "out", Now())
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert all(row["cpu_s"] > 0 for row in rows)
    for point, row in zip(grid.points, rows, strict=True):
        folder = point.folder(tmp_path / "out")
        assert row_of(point, folder, count_of(point.config)) == row
    # A second time nothing is trained: the result is read.
    assert submit(grid, tmp_path / "out", Now()) == rows


def test_failed_job_is_a_row_with_its_reason(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    row = run_point(point_of(TINY), tmp_path / "out", data=text)
    assert row["status"] == "failed"
    assert "short.txt is too short" in row["reason"]


def test_flat_values_are_one_point() -> None:
    point = point_of(TINY | {"model.heads": 4, "lr": 1})
    assert point.config.model["heads"] == 4
    assert point.config.model["width"] == 32
    assert point.config.lr == 1.0
    with pytest.raises(ValueError, match="the values make 2 points; expected one"):
        point_of(TINY | {"lr": [1, 2]})
    with pytest.raises(ValueError, match="unknown key 'lrs'"):
        point_of(TINY | {"lrs": 1})


def test_submitit_runs_a_grid(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    text = text_corpus(tmp_path).train.pieces[0].path
    grid = grid_of(TINY | {"data": text.name}, beside=tmp_path)
    executor = submitit.LocalExecutor(folder=tmp_path / "logs")
    executor.update_parameters(timeout_min=5)
    (job,) = submit(grid, tmp_path / "out", executor)
    assert job.result()["status"] == "finished"


def test_ray_tune_runs_trials(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray import tune

    text = text_corpus(tmp_path).train.pieces[0].path
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        found = tune.Tuner(
            trainable(tmp_path / "out", data=text, base=TINY),
            param_space={"lr": tune.grid_search([0.01, 0.02])},
        ).fit()
        rows = [result.metrics for result in found]
    finally:
        ray.shutdown()
    assert not found.errors
    assert sorted(row["lr"] for row in rows) == [0.01, 0.02]
    assert all(row["loss"] > 0 for row in rows)
    with pytest.raises(ValueError, match="out is a relative path"):
        trainable(Path("out"))
