"""Figures: every kind drawn without a warning, in each file format."""

from pathlib import Path

import pytest

from report.sample import recording_rows
from unitscale.report import group
from unitscale.report.figure import draw_depth, draw_exponents, draw_snr


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("held", [0, 3])
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


def test_snr_is_drawn(tmp_path: Path) -> None:
    points = {"E5M2": [(0.0, 25.0), (1.0, 25.5)]}
    draw_snr(points, points, tmp_path / "snr.png")
    assert (tmp_path / "snr.png").stat().st_size > 3000
