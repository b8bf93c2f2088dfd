"""The cost of units: the block is the same function, and the figures say what they should."""

import pytest
import torch
import unit_cost


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_cost, "INNER", "eager")
    monkeypatch.setattr(unit_cost, "LENGTH", 32)


def test_a_block_at_units_is_the_plain_one() -> None:
    plain, scaled = unit_cost.block(64, None), unit_cost.block(64, "fp32-units")
    inputs = unit_cost.tensors(64)
    for _ in range(2):
        assert torch.equal(plain(inputs[0]), scaled(inputs[0]))
        unit_cost.loss_of(scaled, *inputs).backward()


def test_a_figure_compares_within_a_round() -> None:
    plain = [unit_cost.Compiled(python, 1.0, 9) for python in (0.0, 19.0, 2.0)]
    scaled = [unit_cost.Compiled(python, 2.0, 11) for python in (0.0, 38.0, 1.0)]
    row = unit_cost.compile_row(plain, scaled, "fp8")
    assert (row.median, row.rounds, row.milliseconds) == (0.5, 3, 3000.0)
    assert row.note == (
        "cost 2.000; Python 1.0 s (2.0), C++ 2.0 s (1.0), 11 kernels (9), plain's in brackets"
    )


def test_fp8_keeps_less() -> None:
    rows = unit_cost.saved_rows(64)
    sizes = {row.case.split()[-1]: row.median for row in rows}
    assert 0 < sizes["fp8"] < sizes["fp16"] < sizes["fp32-units"]
