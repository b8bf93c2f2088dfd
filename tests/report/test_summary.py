"""Summaries: means, spreads and the texts of cells."""

import pytest

from report.sample import RUNS, run
from unitscale.report import summarize
from unitscale.report.cost import COST_TITLES, cost_rows
from unitscale.report.summary import (
    TITLES,
    Spread,
    bytes_text,
    control_of,
    outcome,
    summarize_results,
)


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


UNIT_RUNS = [*RUNS, run("fp32-units", 0, 0.9), run("fp32-units", 1, 1.8)]


def test_difference_is_that_of_the_parametrization_and_that_of_the_format() -> None:
    fp32, fp8, fp8_none, control = summarize(UNIT_RUNS)
    assert (fp32.control, control.control) == (None, None)  # they round nothing
    assert (fp8.control, fp8_none.control) == ("fp32-units", "fp32")
    assert fp8.format_change.mean == pytest.approx(0.3)  # 1.1 - 0.9 and 2.2 - 1.8
    parts = fp8.format_change.mean + control.valid_loss_change.mean  # type: ignore[operator]
    assert parts == pytest.approx(fp8.valid_loss_change.mean)
    assert fp8_none.format_change == fp8_none.valid_loss_change
    said = outcome(summarize(UNIT_RUNS))
    assert (
        "The format's part, against fp32-units: fp8 +0.300 ± 0.141. "
        "The parametrization's part: -0.150 ± 0.071." in said
    )
    assert "is not known" not in said


def test_without_the_control_the_parts_are_said_to_be_unknown() -> None:
    _, fp8, _ = summarize(RUNS)
    assert (fp8.control, fp8.format_change.mean) == ("fp32-units", None)
    assert "of fp8 does is not known without a run of fp32-units" in outcome(summarize(RUNS))


def test_units_leave_an_existing_model_as_it_is_so_all_is_the_format() -> None:
    results = {"runs": RUNS, "config": {"existing": "llama"}}
    _, fp8, _ = summarize_results(results)
    assert (fp8.control, fp8.format_change) == ("fp32", fp8.valid_loss_change)
    assert "not known" not in outcome(summarize_results(results))


def test_recipe_of_another_version_has_the_control_of_its_parametrization() -> None:
    assert control_of(run("fp4", 0, 1.0, unit_scaled=True)) == "fp32-units"
    assert control_of(run("fp4", 0, 1.0)) == "fp32"


def test_cells_say_what_is_missing_and_what_diverged() -> None:
    fp32, fp8, fp8_none = (summary.cells() for summary in summarize(RUNS))
    assert len(fp32) == len(TITLES)
    assert fp32[:5] == ("fp32", "1.500 ± 0.707", "", "", "1.500 ± 0.707")
    assert fp8[2:4] == ("+0.150 ± 0.071", "–")
    assert fp8[5:8] == ("1,500", "1 MiB", "50/–/100")
    assert fp8_none[-1] == "diverged (1 of 2)"
    assert summarize([run("fp8", 0, None)])[0].cells()[1:5] == ("–", "–", "–", "–")


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (512, "512 B"), (1536, "1.5 KiB"), (2**30 * 3, "3 GiB")],
)
def test_bytes_have_a_unit(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize("name", ["fp16-true", "fp16-true-units", "fp16-true(11)"])
def test_memory_of_what_is_emulated_in_fp32_is_no_memory_of_the_recipe(name) -> None:
    runs = {"runs": [run("fp32", 0, 1.0), run("fp8", 0, 1.0), run(name, 0, 1.1)]}
    plain, fp8, emulated = (summary.cells() for summary in summarize_results(runs))
    memory = TITLES.index(next(title for title in TITLES if "saved" in title or "mem" in title))
    assert emulated[memory] == "–"
    assert "–" not in (plain[memory], fp8[memory])
    assert emulated[-1] == "emulated in FP32"
    assert fp8[-1] == ""
    rows = list(cost_rows(runs))
    assert [row[COST_TITLES.index("saved\nover fp32")] for row in rows][1:] == ["1.00", "–"]


def test_outcome_of_one_seed_says_so() -> None:
    one = outcome(summarize([run("fp32", 0, 1.0), run("fp8", 0, 1.1)]))
    assert "Against it (one seed, so that nothing is known of the spread): fp8 +0.100" in one
    assert "one seed" not in outcome(summarize(RUNS))
