"""The exhaustive comparison of `benchmarks/exhaustive_float32.py`, whole and in part."""

import runpy
from pathlib import Path

import pytest

from unitscale.formats import E4M3FN, E5M2

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "exhaustive_float32.py"
each_case = pytest.mark.parametrize(
    ("fmt", "saturate"), [(fmt, saturate) for fmt in (E4M3FN, E5M2) for saturate in (True, False)]
)


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_no_small_format_differs_from_ml_dtypes(script, capsys):
    assert script["check_small"]() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(script["ML_DTYPES"])


@each_case
def test_one_in_a_thousand_float32(script, fmt, saturate):
    assert script["check_all"](fmt, saturate=saturate, step=1009) == 0


@pytest.mark.slow
@pytest.mark.timeout(0)  # it goes through 2**32 values, however long that takes
@each_case
def test_all_float32(script, fmt, saturate):
    assert script["check_all"](fmt, saturate=saturate) == 0


def test_a_wrong_rounding_is_counted(script, monkeypatch):
    check_all = script["check_all"]
    monkeypatch.setitem(check_all.__globals__, "round_to", lambda x, fmt, saturate: x)
    assert check_all(E4M3FN, saturate=True, step=65_537) > 60_000
