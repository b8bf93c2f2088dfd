"""The folder that becomes another one when it is whole, and what killed processes left of such.

A process that is killed cannot remove what it was writing. The next one that writes the same folder
does, if it is sure that the first is gone: the name says which process on which machine it was, and
a living one holds a lock on the folder.
"""

import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unitscale.report.atomic import UNFINISHED

__all__ = ["remove_left_over", "unfinished_folder"]

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
"""Windows has no such module."""

LONGEST = 100
"""Characters of a folder's name in that of the unfinished one; file systems take 255 in all."""


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be renamed to it: what is not is removed at the end.

    What earlier processes that are gone have left of the same folder is removed first.

    Raises:
        OSError: it cannot be made.
    """
    remove_left_over(folder)
    start = f"{start_of(folder)}{machine()}-{os.getpid()}-"
    made = Path(tempfile.mkdtemp(prefix=start, dir=folder.parent))
    UNFINISHED.add(made)
    held = lock(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        UNFINISHED.discard(made)
        if held is not None:
            os.close(held)


def remove_left_over(folder: Path) -> list[Path]:
    """Remove the unfinished folders of `folder` whose process is gone; those that were.

    A folder of a living process is left alone, and so are those of other machines, of processes
    whose number another one has by now, and whatever else has a similar name.
    """
    pattern = re.compile(re.escape(f"{start_of(folder)}{machine()}-") + r"([0-9]{1,10})-\w+")
    removed = []
    with suppress(OSError):  # a place that cannot be listed is told of when it is written
        for path in folder.parent.iterdir():
            found = pattern.fullmatch(path.name)
            if found is None or path.is_symlink() or not path.is_dir():
                continue
            if is_alive(int(found[1])):
                continue
            held = lock(path)
            if held is None and fcntl is not None:
                continue  # a process of another container writes it
            shutil.rmtree(path, ignore_errors=True)
            if held is not None:
                os.close(held)
            removed.append(path)
    return removed


def start_of(folder: Path) -> str:
    """How the names of the unfinished folders of a folder begin."""
    return f".{folder.name[:LONGEST]}."


def machine() -> str:
    """A short name of this machine."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def is_alive(process: int) -> bool:
    """Whether there is a process of this number, or may be: Windows is not asked."""
    if os.name == "nt":  # there `os.kill` ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def lock(folder: Path) -> int | None:
    """A descriptor that holds the kernel's lock on a folder; None where it is held, or cannot be.

    It ends with the process, however that ends.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
