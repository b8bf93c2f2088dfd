"""What the tests of operations assert; each of these can fail (test_op_asserts.py)."""

from collections.abc import Iterable

from op_scales import Measurement
from torch import Tensor


def assert_unit_scaled(measured: Iterable[Measurement]) -> None:
    """Every tensor has the scale that is stated, and is in [0.9, 1.1] if that is 1."""
    for m in measured:
        assert m.is_as_expected, (
            f"{m.name}: scale {m.value:.4f}, expected {m.expected:.4f} within {m.tolerance:.1%}"
        )
        assert m.is_unit or m.expected != 1.0, f"{m.name}: scale {m.value:.4f} is not unit"


def assert_multiple(x: Tensor, y: Tensor, tolerance: float = 1e-10) -> float:
    """`x` is a positive constant times `y`, which is returned; the tolerance is for float64."""
    constant = ((x * y).sum() / (y * y).sum()).item()
    assert constant > 0, f"the factor is {constant}, expected a positive one"
    error = ((x - constant * y).norm() / x.norm()).item()
    assert error <= tolerance, f"relative distance {error:.2e} from {constant:.6f} times it"
    return constant
