"""What is checked of the numbers that the adapters are given."""

import math
from typing import Any

__all__ = ["check_number", "check_whole"]


def check_whole(caller: str, name: str, value: Any, low: int) -> None:
    """Refuse what is no whole number of at least `low`.

    Raises:
        ValueError: names the argument, and what it was.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(
            f"{caller}: {name} is {value!r}; expected a whole number of {low} or more."
        )


def check_number(
    caller: str,
    name: str,
    value: Any,
    low: float = 0,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Refuse what is no finite number from `low` to `high`.

    Args:
        above, below: whether `low`, or `high`, is out of range itself.
    Raises:
        ValueError: names the argument, and what it was.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    ok = is_number and math.isfinite(value) and low <= value <= high
    if not ok or (above and value == low) or (below and value == high):
        more = f"above {low}" if above else f"of {low} or more"
        limit = f", below {high}" if below else f", at most {high}"
        most = "" if math.isinf(high) else limit
        raise ValueError(f"{caller}: {name} is {value!r}; expected a number {more}{most}.")
