"""The promise of every operation, measured; the table of docs/ops.md holds the same cases."""

import re

import pytest
from op_asserts import assert_unit_scaled
from op_case import Case
from op_cases import cases
from op_scales import PAGE, measure, table_row

import unitscale.functional as U

RUNS = [
    pytest.param(case, constraint, id=f"{case.name}, {constraint}")
    for case in cases()
    for constraint in case.constraints or (None,)
]


@pytest.mark.parametrize(("case", "constraint"), RUNS)
def test_output_and_every_gradient_have_the_stated_scale(
    case: Case, constraint: str | None
) -> None:
    assert_unit_scaled(measure(case, constraint))


def test_a_constraint_gives_up_what_it_says() -> None:
    stated = [case.given_up[name] for case in cases() for name in case.given_up]
    assert sum(not 0.9 <= value <= 1.1 for value in stated) > 50


def test_every_operation_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (\S+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert {op for op, _, _ in rows} == set(U.__all__)
    wanted = []
    for case in cases():
        for constraint in case.constraints or (None,):
            start = table_row(case, constraint, [])
            wanted += re.findall(r"^\| `(\w+)` \| (.+?) \| (\S+) \|", start)
    assert rows == wanted, "run benchmarks/op_scales.py"
