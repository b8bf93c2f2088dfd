"""Files of a newer version of this library: one line that says so, and old ones are read still."""

import json
from pathlib import Path
from typing import Any

import pytest

from report.sample import RUNS, recording_rows
from unitscale.laws.file import KIND, load_law
from unitscale.report import read_recording
from unitscale.report.folder import read_contents
from unitscale.report.version import check_version, upgrade
from unitscale.sweep.folder import read_sweep
from unitscale.train.trained import run_of

RUN = {"config": {"recipe": "fp8", "model": {}, "steps": 9}, "data": "text"}
COMPARISON = {"data": "x", "model": "attention", "steps": 2, "runs": RUNS[:1]}


@pytest.mark.parametrize(("found", "is_newer"), [(1, False), (2, False), (3, True), (None, False)])
def test_a_newer_format_alone_asks_for_an_upgrade(found: Any, is_newer: bool) -> None:
    assert bool(upgrade(found, 2)) == is_newer
    if not is_newer:
        check_version(found, 2, "a file")
        return
    with pytest.raises(
        ValueError, match=r"a file is of format 3.*up to 2; a newer unitscale wrote"
    ):
        check_version(found, 2, "a file")


@pytest.mark.parametrize(("name", "content"), [("config.json", RUN), ("results.json", COMPARISON)])
def test_a_report_of_a_newer_folder_is_refused(name: str, content: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    read_contents(tmp_path)
    (tmp_path / name).write_text(json.dumps(content | {"version": 3}))
    with pytest.raises(ValueError, match=rf"{name} is of format 3.*pip install --upgrade"):
        read_contents(tmp_path)


def test_a_newer_recording_is_refused(tmp_path: Path) -> None:
    header, *rows = recording_rows(steps=[0])
    path = tmp_path / "numerics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    read_recording(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in ({**header, "version": 2}, *rows)))
    with pytest.raises(ValueError, match="1 is of format 2, and this unitscale reads up to 1"):
        read_recording(path)


def test_newer_runs_laws_and_sweeps_say_what_to_do(tmp_path: Path) -> None:
    files = {
        "config.json": (RUN, run_of, tmp_path),
        "law.json": ({"kind": KIND}, load_law, tmp_path / "law.json"),
        "sweep.json": ({}, read_sweep, tmp_path),
    }
    for name, (content, read, given) in files.items():
        (tmp_path / name).write_text(json.dumps(content | {"version": 9}))
        with pytest.raises((ValueError, RuntimeError), match=r"version 9.*pip install --upgrade"):
            read(given)
