"""What fails before its first step leaves a folder as it was, so that the next try may have it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["has_begun", "made_for_this", "undone_unless_begun"]

STEP = b'"loss":'
"""What a line of a step has in log.jsonl, and that of the first measurements has not."""


def has_begun(folder: Path, log: str) -> bool:
    """Whether a run in a folder, or in one inside, has made a step: its log says so."""
    return any(
        STEP in line.replace(b" ", b"")
        for path in folder.rglob(log)
        for line in path.read_bytes().splitlines()
    )


@contextmanager
def undone_unless_begun(folder: Path, log: str) -> Iterator[None]:
    """Remove what a failure leaves in a folder that the caller holds, unless a step was made."""
    before = set(folder.rglob("*"))
    try:
        yield
    except BaseException:
        if not has_begun(folder, log):
            # What is inside a folder comes after it in order, and so before it when reversed.
            for path in sorted(set(folder.rglob("*")) - before, reverse=True):
                with suppress(OSError):
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


@contextmanager
def made_for_this(folder: Path) -> Iterator[None]:
    """Remove a folder, and those above it, if they are new and a failure leaves them empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # one that is not empty stays, and with it those above
            for path in missing:
                path.rmdir()
        raise
