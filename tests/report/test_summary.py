"""Summaries: means, spreads and the texts of cells."""

import pytest

from report.sample import RUNS, run
from unitscale.report import summarize
from unitscale.report.summary import TITLES, Spread, bytes_text


def test_one_row_per_recipe_in_order() -> None:
    assert [(s.recipe, s.seeds, s.diverged) for s in summarize(RUNS)] == [
        ("fp32", 2, 0),
        ("fp8", 2, 0),
        ("fp8-none", 2, 1),
    ]


def test_change_is_the_mean_difference_to_the_same_seed() -> None:
    fp32, fp8, fp8_none = summarize(RUNS)
    assert fp8.valid_loss.mean == pytest.approx(1.65)
    assert fp8.valid_loss_change.mean == pytest.approx(0.15)
    # Differences 0.1 and 0.2: their spread, not that of the losses.
    assert fp8.valid_loss_change.std == pytest.approx(0.1 / 2**0.5)
    assert fp8_none.valid_loss_change == Spread(mean=1.0, std=None)
    assert fp32.tokens_per_s == 1500.0


def test_change_without_a_baseline_is_missing() -> None:
    (fp8,) = summarize([run("fp8", 0, 1.1)])
    assert fp8.valid_loss_change == Spread(mean=None, std=None)


def test_cells_say_what_is_missing_and_what_diverged() -> None:
    fp32, fp8, fp8_none = (summary.cells() for summary in summarize(RUNS))
    assert len(fp32) == len(TITLES)
    assert fp32[:4] == ("fp32", "1.500 ± 0.707", "", "1.500 ± 0.707")
    assert fp8[2] == "+0.150 ± 0.071"
    assert fp8[4:7] == ("1,500", "1 MiB", "50/–/100")
    assert fp8_none[-1] == "diverged (1 of 2)"
    assert summarize([run("fp8", 0, None)])[0].cells()[1:4] == ("–", "–", "–")


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (512, "512 B"), (1536, "1.5 KiB"), (2**30 * 3, "3 GiB")],
)
def test_bytes_have_a_unit(count: float | None, text: str) -> None:
    assert bytes_text(count) == text
