"""Files that are whole or absent, whatever stops the process that writes them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED: set[Path] = set()
"""Temporary files and folders that are being written now."""


def remove_unfinished() -> None:
    """Remove them: for a process that ends at once, without the code that would."""
    for path in list(UNFINISHED):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to it at the end, removed after an error.

    Raises:
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: its folder does not exist.
        OSError: the disk is full, or the folder cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist; make it first")
    temporary = path.with_name(path.name + ".tmp")
    UNFINISHED.add(temporary)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a crash could leave the new name with no content
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        UNFINISHED.discard(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, as UTF-8; what UTF-8 cannot hold is written as an escape.

    A file name that is not UTF-8 has such characters in Python, and results.json holds it.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
