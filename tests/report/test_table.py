"""Tables for a terminal."""

from rich.console import Console

from report.sample import RESULTS
from unitscale.report import comparison_table, headline, plain_table


def text(table: object, width: int = 120) -> list[str]:
    """The lines of a table."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_comparison_has_a_line_per_recipe_within_120_columns() -> None:
    lines = text(comparison_table(RESULTS))
    for recipe in ("fp32 ", "fp8 ", "fp8-none "):
        assert sum(line.strip().startswith(recipe) for line in lines) == 1
    assert "train loss: the mean of the last twentieth of the steps" in " ".join(
        " ".join(lines).split()
    )
    assert any("diverged (1 of 2)" in line for line in lines)
    assert max(map(len, lines)) <= 120


def test_headline_says_what_was_compared() -> None:
    assert headline(RESULTS) == (
        "attention model on a<b>.txt: 20 steps, 2 seeds; losses in nats a byte"
    )


def test_plain_table_writes_short_numbers() -> None:
    rows = [
        {"a": 65504.0, "b": 1 / 3, "c": True, "d": None},
        {"a": 1e9, "b": 2, "c": False, "d": 1},
    ]
    lines = [line.split() for line in text(plain_table(rows))]
    assert ["65504", "0.3333", "✓", "–"] in lines
    assert ["1e+09", "2", "1"] in lines
