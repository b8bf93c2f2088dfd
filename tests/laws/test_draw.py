import pytest

from laws.synthetic import published_rows, recipe_rows
from laws.test_law import post_rows
from unitscale.laws import fit, published
from unitscale.laws.draw import draw_fit, draw_plan, empirical_factors


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_pictures_are_drawn(tmp_path):
    rows = recipe_rows()
    law = fit(rows, draws=3)
    draw_fit(law, rows, tmp_path / "fit.png")
    draw_plan(law, tmp_path / "plan.svg", flops=1e11)
    assert is_picture(tmp_path / "fit.png")
    assert "mxfp4" in (tmp_path / "plan.svg").read_text()


def test_pictures_of_bits_and_of_damage_are_drawn(tmp_path):
    rows = published_rows(60)
    draw_fit(fit(rows, draws=2), rows, tmp_path / "fit.png")
    draw_plan(published(), tmp_path / "plan.svg", flops=1e21)
    draw_plan(fit(post_rows(), draws=0), tmp_path / "post.svg", flops=1e11)
    assert is_picture(tmp_path / "fit.png")
    text = (tmp_path / "plan.svg").read_text()
    assert "demo: published constants" in text
    assert "loss after rounding the weights" in text
    assert "lines: equal loss" in text
    assert "demo" not in (tmp_path / "post.svg").read_text()


def test_empirical_factors_are_those_of_the_law_without_noise():
    rows = recipe_rows(noise=0.0)
    law = fit(rows, draws=0)
    found = empirical_factors(law, rows)
    assert len(found) == len(rows)
    for row, factor in found:
        assert factor == pytest.approx(law.factor(recipe=row.recipe), rel=0.02)
