"""Cases of a test that run with `-m slow` alone, because others of the same kind run always."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["all_but", "slow"]


def slow(*values: Any) -> Any:
    """A case of `pytest.mark.parametrize` that is marked slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def all_but(cases: Iterable[Any], quick: Callable[[Any], bool]) -> list[Any]:
    """Cases of one value, slow but for those that are `quick`."""
    return [case if quick(case) else slow(case) for case in cases]
