"""Packages that only some users need: each is an extra of the distribution."""

from importlib import import_module
from typing import Any

EXTRAS = {
    "matplotlib": "report",
    "plotly": "report",
    "pyarrow": "parquet",
    "ray": "ray",
    "rich": "cli",
}
"""A package to the extra that installs it."""


def imported(name: str, *, instead: str = "") -> Any:
    """A module of a package that may be missing.

    Args:
        instead: what else a user can do, as the end of the error.
    Raises:
        ValueError: the package is not installed; the line says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there, and something that it needs is not
        raise ValueError(
            f"this needs {package}, which is not installed; run: "
            f"pip install 'unitscale[{EXTRAS[package]}]'{instead}"
        ) from error
