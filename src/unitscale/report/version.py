"""Files that a newer version of this library wrote: refused, since they may mean something else."""

from typing import Any

__all__ = ["check_version", "upgrade"]


def upgrade(found: Any, known: int) -> str:
    """What to do with a file of format `found`, where formats up to `known` are read.

    For the end of an error, after a semicolon; empty if the file is no newer one.
    """
    if type(found) is not int or found <= known:
        return ""
    return "; a newer unitscale wrote it: pip install --upgrade unitscale"


def check_version(found: Any, known: int, where: str) -> None:
    """Refuse a file of a newer format. One that says no number is of the first.

    Raises:
        ValueError: it is newer; says what to do.
    """
    if found is not None and (advice := upgrade(found, known)):
        raise ValueError(
            f"{where} is of format {found}, and this unitscale reads up to {known}{advice}"
        )
