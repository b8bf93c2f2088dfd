"""Figures: every kind drawn without a warning, in each file format."""

import errno
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from marks import slow
from report.sample import recording_rows
from unitscale.report import group
from unitscale.report.figure import draw_depth, draw_exponents, draw_snr, spread


@pytest.mark.parametrize(
    ("suffix", "held"),
    [("png", 3), ("svg", 0), slow("pdf", 3), slow("png", 0), slow("svg", 3), slow("pdf", 0)],
)
def test_exponents_and_depth_are_drawn(tmp_path: Path, suffix: str, held: int) -> None:
    rows = [
        row | {"held_log2": held} if "name" in row else row for row in recording_rows(steps=[0, 5])
    ]
    path = tmp_path / f"figure.{suffix}"
    for draw in (draw_exponents, draw_depth):
        draw(group(rows), path)
        assert path.stat().st_size > 3000
        path.unlink()


def test_svg_names_the_tensors_and_is_the_same_twice(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        draw_exponents(group(recording_rows(steps=[0])), tmp_path / "e.svg")
        texts.append((tmp_path / "e.svg").read_text())
    assert "layers.3.linear" in texts[0]
    assert "gradients, limits of E5M2" in texts[0]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("draw", [draw_exponents, draw_depth])
def test_step_that_was_not_recorded_is_named(tmp_path: Path, draw) -> None:
    with pytest.raises(ValueError, match=r"step 7; the recorded steps are \[0, 5\]"):
        draw(group(recording_rows(steps=[0, 5])), tmp_path / "x.png", step=7)


@pytest.mark.parametrize("draw", [draw_exponents, draw_depth])
def test_names_of_the_worst_and_of_those_asked_for_are_drawn(tmp_path: Path, draw) -> None:
    recording = group(recording_rows(steps=[0], layers=30, fault_at=0, layer=7))
    path = tmp_path / "figure.svg"
    assert draw(recording, path) == []
    assert "layers.7.linear" not in path.read_text()  # 60 names do not fit
    assert draw(recording, path, label=1) == ["layers.7.linear (gradient)"]
    assert "layers.7.linear" in path.read_text()
    assert "layers.8.linear" not in path.read_text()
    assert draw(recording, path, label=["layers.1?.add"])[0] == "layers.10.add"
    assert "layers.19.add" in path.read_text()
    with pytest.raises(ValueError, match=r"'layers.3.ad' matches no .* is 'layers.3.add'"):
        draw(recording, path, label=["layers.3.ad"])
    with pytest.raises(ValueError, match="label is 0; expected at least 1"):
        draw(recording, path, label=0)
    with pytest.raises(ValueError, match="label is empty"):
        draw(recording, path, label=[])


def test_name_with_brackets_is_found_as_it_is(tmp_path: Path) -> None:
    header, *rows = recording_rows(steps=[0])
    rows[0] = rows[0] | {"name": "heads['a'].linear"}
    named = draw_depth(group([header, *rows]), tmp_path / "d.png", label=["heads['a'].linear"])
    assert named == ["heads['a'].linear"]


def test_names_that_are_close_are_moved_apart() -> None:
    assert spread([1.0, 5.0], 2.0) == [1.0, 5.0]
    moved = spread([1.0, 1.1, 1.2, 9.0], 2.0)
    assert all(b - a >= 2.0 for a, b in pairwise(moved))
    assert spread([], 1.0) == []


def test_figure_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.png"
    recording = group(recording_rows(steps=[0]))
    draw_depth(recording, path)
    before = path.read_bytes()

    def full(self: Figure, target: Path, **options: object) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        draw_depth(recording, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"matplotlib, .*pip install 'unitscale\[report\]'"):
        draw_depth(group(recording_rows(steps=[0])), tmp_path / "d.png")


def test_snr_is_drawn(tmp_path: Path) -> None:
    points = {"E5M2": [(0.0, 25.0), (1.0, 25.5)]}
    draw_snr(points, points, tmp_path / "snr.png")
    assert (tmp_path / "snr.png").stat().st_size > 3000
