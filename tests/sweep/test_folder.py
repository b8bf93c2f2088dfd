"""A sweep goes on with its own settings, or it says what differs and changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.tiny import text_corpus
from unitscale.data import Corpus, open_corpus
from unitscale.sweep.folder import claimed_sweep, recorded_threads
from unitscale.sweep.grid import grid_of
from unitscale.sweep.point import Point
from unitscale.train.lock import InUseError
from unitscale.train.run_folder import CheckpointError, claimed

TINY = {"steps": 4, "lr": [0.1, 0.2], "recipe": "fp32", "model": {"width": 32}}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return text_corpus(tmp_path)


def points(**changes: Any) -> tuple[Point, ...]:
    return grid_of(TINY | changes).points


def begun(out: Path, corpus: Corpus) -> Path:
    """The folder of a sweep that was claimed once, with one run begun in it."""
    with claimed_sweep(out, points(), corpus, threads=1, resume=False):
        first = points()[0]
        with claimed(first.folder(out), first.config, corpus, resume=True):
            pass
    return out


def content(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_it_goes_on_with_the_same_grid_and_with_a_wider_one(tmp_path: Path, corpus: Corpus) -> None:
    out = begun(tmp_path / "out", corpus)
    assert recorded_threads(out) == 1
    with claimed_sweep(out, points(), corpus, threads=1, resume=True):
        pass
    with claimed_sweep(out, points(lr=[0.05, 0.1, 0.2]), corpus, threads=1, resume=True):
        pass
    assert len(json.loads((out / "sweep.json").read_text())["points"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, "its steps is 4 and not 5"),
        ({"lr": [0.1, 0.3]}, "its lr is 0.2 and not 0.1"),
        ({"recipe": "fp8"}, "its recipe is 'fp32' and not 'fp8'"),
        ({"model": {"width": 64}}, "its width is 32 and not 64"),
        ({"seed": 1}, "its seed is 0 and not 1"),
    ],
)
def test_other_settings_are_refused_and_named(
    changes: dict[str, Any], message: str, tmp_path: Path, corpus: Corpus
) -> None:
    out = begun(tmp_path / "out", corpus)
    before = content(out)
    with (
        pytest.raises(ValueError, match=message),
        claimed_sweep(out, points(**changes), corpus, threads=1, resume=True),
    ):
        raise AssertionError
    assert content(out) == before


def test_other_text_and_threads_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    out = begun(tmp_path / "out", corpus)
    (tmp_path / "other").mkdir()
    other = text_corpus(tmp_path / "other").train.pieces[0].path
    other.write_text(other.read_text() + "more of it" * 50)
    for text, threads, message in (
        (open_corpus(other), 1, "holds a sweep on another text"),
        (corpus, 2, "holds runs with 1 threads each and not 2"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            claimed_sweep(out, points(), text, threads=threads, resume=True),
        ):
            raise AssertionError


def test_second_process_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    out = tmp_path / "out"
    with (
        claimed_sweep(out, points(), corpus, threads=1, resume=False),
        pytest.raises(InUseError, match="in use by another process"),
        claimed_sweep(out, points(), corpus, threads=1, resume=True),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("name", "text", "resume", "message"),
    [
        ("sweep.json", "{}", False, "holds a sweep already (sweep.json exists); add --resume"),
        ("runs.csv", "x", False, "holds a sweep already (runs.csv exists)"),
        ("config.json", "{}", True, "holds a run of `train` (config.json exists)"),
        ("results.json", "{}", True, "holds a comparison (results.json exists)"),
        ("runs/mine/log.jsonl", "", True, "also holds the run mine, which is not in the grid"),
        ("sweep.json", "{", True, "is damaged"),
        ("sweep.json", "[]", True, "is damaged"),
        ("sweep.json", '{"version": 1}', True, "is damaged (its points is None)"),
        ("sweep.json", '{"version": 9}', True, "is of version 9, and this unitscale writes 1"),
    ],
)
def test_folder_of_something_else_is_left_alone(
    name: str, text: str, resume: bool, message: str, tmp_path: Path, corpus: Corpus
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    before = content(tmp_path / "out")
    with (
        pytest.raises((ValueError, OSError, CheckpointError)) as found,
        claimed_sweep(tmp_path / "out", points(), corpus, threads=1, resume=resume),
    ):
        raise AssertionError
    assert message in str(found.value)
    assert content(tmp_path / "out") == before


def test_run_whose_folder_was_swapped_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    """A name alone is no proof: the configuration in the folder counts."""
    out = begun(tmp_path / "out", corpus)
    first, second = points()
    first.folder(out).rename(second.folder(out))
    with (
        pytest.raises(ValueError, match=r"holds another run: its lr is 0\.1 and not 0\.2"),
        claimed_sweep(out, points(), corpus, threads=1, resume=True),
    ):
        raise AssertionError
