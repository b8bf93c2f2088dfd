import pytest
import torch
from op_asserts import assert_multiple, assert_unit_scaled
from op_case import Case, normal
from op_scales import Measurement, measure

import unitscale.functional as U


def measurement(value: float, expected: float = 1.0, tolerance: float = 0.02) -> Measurement:
    return Measurement(
        name="output", value=value, expected=expected, reason="", tolerance=tolerance
    )


def test_unit_scaled_accepts_a_stated_value() -> None:
    assert_unit_scaled([measurement(1.01), measurement(3.02, expected=3.0)])


@pytest.mark.parametrize("value", [0.97, 1.03, 2.0])
def test_unit_scaled_fails_outside_the_tolerance(value: float) -> None:
    with pytest.raises(AssertionError, match=f"output: scale {value}"):
        assert_unit_scaled([measurement(value)])


def test_unit_scaled_fails_outside_the_band_however_wide_the_tolerance() -> None:
    with pytest.raises(AssertionError, match="not unit"):
        assert_unit_scaled([measurement(1.15, tolerance=0.5)])


def test_unit_scaled_fails_for_torchs_own_operation() -> None:
    case = Case(
        op="linear",
        shape="",
        operands={"input": normal(256, 64), "weight": normal(64, 64)},
        run=lambda x, w, constraint: torch.nn.functional.linear(x, w),
    )
    with pytest.raises(AssertionError, match="output: scale 8"):
        assert_unit_scaled(measure(case, None))


def test_unit_scaled_fails_for_a_factor_that_is_three_percent_off() -> None:
    case = Case(
        op="gelu",
        shape="",
        operands={"input": normal(256, 256)},
        run=lambda x, constraint: U.gelu(x, constraint=constraint) * 1.039,
    )
    with pytest.raises(AssertionError, match=r"output: scale 1\.0"):
        assert_unit_scaled(measure(case, None))


def test_multiple_returns_the_constant() -> None:
    x = torch.randn(100, dtype=torch.float64)
    assert assert_multiple(x * 0.3, x) == pytest.approx(0.3, rel=1e-14)


def test_multiple_fails_for_another_direction_and_for_a_negative_factor() -> None:
    x = torch.randn(100, dtype=torch.float64)
    with pytest.raises(AssertionError, match="distance"):
        assert_multiple(x + 1e-6 * torch.randn_like(x), x)
    with pytest.raises(AssertionError, match="positive"):
        assert_multiple(-x, x)
