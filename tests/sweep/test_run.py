"""Sweeps that train: in workers, with runs that diverge, fail and die; stopped, killed, resumed."""

import csv
import json
import multiprocessing
import os
import shlex
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import PRELOADED
from train.tiny import text_corpus
from unitscale.cli import main
from unitscale.data import open_corpus
from unitscale.sweep.cores import Share
from unitscale.sweep.grid import read_grid
from unitscale.sweep.pool import StoppedError, run_points
from unitscale.train import train
from unitscale.train.interrupt import StopRequest
from unitscale.train.lock import locked
from unitscale.train.run_log import losses, read_log

TINY = """
data = "text.txt"
batch_size = 4
sequence_length = 16
eval_windows = 8
device = "cpu"
"""

MODEL = """
import os, signal, time
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, fate, nap_s=0.0):
        super().__init__()
        self.fate, self.nap_s = fate, nap_s
        self.embedding, self.readout = nn.Embedding(256, 8), nn.Linear(8, 256)

    def forward(self, ids):
        if ids.shape[0] == 4 and self.training and torch.is_grad_enabled():
            if not os.path.exists("awake"):
                time.sleep(self.nap_s)
            if self.fate == "raises" and not os.path.exists("mended"):
                raise RuntimeError("a fault\\nof two lines")
            if self.fate == "dies" and not os.path.exists("mended"):
                os.kill(os.getpid(), signal.SIGKILL)
        return self.readout(self.embedding(ids))
"""


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of a command of this process."""
    monkeypatch.setattr(sys, "argv", ["unitscale", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text and a model; workers find it as the shell would."""
    text_corpus(tmp_path)
    (tmp_path / "fated_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unitscale.sweep.cores.available_cores", lambda: 2)
    return tmp_path


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


MIXED = """
[[grid]]
recipe = "fp32"
steps = 30
lr = [0.01, 1e30]
model = {width = 32, depth = 1}
[[grid]]
recipe = "fp32"
steps = 3
existing = "fated_model:Model"
model.fate = ["raises", "dies", "lives"]
"""


def test_failed_and_diverged_runs_are_rows_and_failed_ones_are_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "grid.toml").write_text(TINY + MIXED)
    out = folder / "out"
    line = ["sweep", "grid.toml", "--out", out]
    assert command(monkeypatch, *line, "--workers", "2", "--json") == 1
    printed, err = capfd.readouterr()
    assert "2 of 5 runs failed" in err
    rows = list(rows_of(out).values())
    assert [row["status"] for row in rows] == [
        *("finished", "diverged", "failed", "failed", "finished")
    ]
    assert [row["name"] for row in rows] == [p.name for p in read_grid(folder / "grid.toml").points]
    well, bad, raised, died, lived = rows
    assert "the loss is no number at step" in bad["reason"]
    assert bad["loss"] is None
    assert bad["steps_done"] < 30
    assert raised["reason"].startswith("fated_model:Model failed on bytes (expected a language")
    assert raised["reason"].endswith(": RuntimeError: a fault")
    assert "SIGKILL" in died["reason"]
    assert (well["n_tokens"], well["n_params"]) == (30 * 4 * 16, 28_928)
    assert (lived["n_params"], lived["n_embedding_params"]) == (256 * 8 * 2 + 256, 256 * 8)
    assert well["seconds"] > 0
    assert well["cpu_s"] > 0
    found = json.loads(printed)
    assert found["runs"] == rows
    with (out / "runs.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["loss"] for row in table] == [
        "" if row["loss"] is None else repr(row["loss"]) for row in rows
    ]
    assert {"recipe", "n_params", "n_tokens", "lr", "seed", "model.fate"} <= table[0].keys()
    for name in ("results.md", "lr.png", "summary.json", "sweep.json", "workers.log"):
        assert (out / name).exists(), name

    # What failed is made again, and what is done is not: not a file of it is touched.
    (folder / "mended").touch()
    done = {name: (out / "runs" / name / "result.json") for name in rows_of(out)}
    before = {p: p.stat().st_mtime_ns for p in done.values() if p.exists()}
    assert len(before) == 3
    assert command(monkeypatch, *line, "--workers", "1", "--resume") == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    again = list(rows_of(out).values())
    assert [row["status"] for row in again] == [
        *("finished", "diverged", "finished", "finished", "finished")
    ]
    assert [again[i] for i in (0, 1, 4)] == [rows[i] for i in (0, 1, 4)]

    # A command of the list makes exactly the row that the sweep made.
    capfd.readouterr()
    assert command(monkeypatch, "sweep", "grid.toml", "--list", "--out", folder / "listed") == 0
    commands = capfd.readouterr().out.splitlines()
    assert len(commands) == 5
    assert not (folder / "listed").exists()
    threads = torch.get_num_threads()
    assert command(monkeypatch, *shlex.split(commands[0])[1:]) == 0
    torch.set_num_threads(threads)
    name = rows[0]["name"]
    logs = [read_log(path / "runs" / name / "log.jsonl") for path in (out, folder / "listed")]
    assert losses(logs[0]) == losses(logs[1])
    assert len(losses(logs[0])) == 30
    results = [
        json.loads((path / "runs" / name / "result.json").read_text())
        for path in (out, folder / "listed")
    ]
    for result in results:
        del result["tokens_per_s"]
    assert results[0] == results[1]


SLOW = """
recipe = "fp32"
existing = "fated_model:Model"
model = {fate = "lives", nap_s = 0.1}
steps = 200
checkpoint_every = 5
"""


def sweeping(folder: Path, steps: Connection) -> None:
    """A process that sweeps in a folder, and says which steps were made."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    grid = read_grid(Path("grid.toml"))
    options: dict[str, Any] = {"data": grid.data, "share": Share(1, 1), "log": Path("log")}
    say = lambda point, step: steps.send(step)
    list(run_points(grid.points, Path("out"), **options, stop=StopRequest(), on_step=say))


def test_a_sweep_that_was_killed_or_stopped_goes_on_to_the_same_bits(folder: Path) -> None:
    (folder / "grid.toml").write_text(TINY + SLOW)
    grid = read_grid(folder / "grid.toml")
    (point,) = grid.points
    options: dict[str, Any] = {"data": grid.data, "share": Share(1, 1), "log": folder / "log"}
    runs = point.folder(folder / "out")

    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    heard, said = context.Pipe(duplex=False)
    parent = context.Process(target=sweeping, args=(folder, said))
    parent.start()
    said.close()
    assert heard.recv() >= 1
    parent.kill()
    parent.join()
    # The worker sees that it is alone, and lets go of its folder.
    deadline = time.monotonic() + 60
    while True:
        try:
            with locked(runs):
                break
        except OSError:
            assert time.monotonic() < deadline, "the worker of a killed sweep trains on"
            time.sleep(0.05)
    begun = len(losses(read_log(runs / "log.jsonl")))
    assert 1 <= begun < 200

    stop = StopRequest()

    def ask(point: object, step: int) -> None:
        stop.is_made = True

    with pytest.raises(StoppedError):
        list(run_points(grid.points, folder / "out", **options, stop=stop, on_step=ask))
    stopped = len(losses(read_log(runs / "log.jsonl")))
    assert begun <= stopped < 200
    assert not (runs / "result.json").exists()

    (folder / "awake").touch()  # until here 20 s were left, on a machine of any speed
    (ended,) = run_points(grid.points, folder / "out", **options, stop=StopRequest())
    assert ended.reason is None
    whole = folder / "whole"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's, of what the model asks of the system
        train(point.config, open_corpus(grid.data), whole)
    logs = [read_log(path / "log.jsonl") for path in (runs, whole)]
    assert losses(logs[0]) == losses(logs[1])
    assert len(losses(logs[1])) == 200


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("lrs = 1", [], "unknown key 'lrs'; did you mean 'lr'?"),
        ("existing = 'no_such_module:build'", [], "there is no module 'no_such_module'"),
        (
            "existing = 'fated_model:Model'\nmodel.fate = ['a']\nmodel.nap = 1",
            [],
            "cannot be called",
        ),
        ("existing = 'fated_model:MODEL'", [], "has no 'MODEL'"),
        ("sequence_length = [16, 100000]", [], "is too short"),
        ("", ["--workers", "3"], "3 workers with 1 thread each need 3 cores"),
        ("", ["--threads", "0"], "--threads is 0; expected at least 1"),
        ("", ["--device", "cpu"], "the grid names a device"),
        ("", ["--data", "grid.toml"], "--data is grid.toml, and the grid's data is"),
        ("", ["--out", ""], "it is empty"),
        ("steps = 0", ["--list"], "steps is 0; expected an integer"),
    ],
)
def test_wrong_grid_is_one_line_before_anything_is_made(
    text: str,
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = "\n".join(x for x in TINY.splitlines() if x.split(" = ")[0] not in text)
    (folder / "grid.toml").write_text(own + "\n" + text)
    assert command(monkeypatch, "sweep", "grid.toml", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1, err
    assert not (folder / "sweep").exists()


def test_missing_grid_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "sweep", "nowhere.toml") == 2
    assert "nowhere.toml" in capsys.readouterr().err
