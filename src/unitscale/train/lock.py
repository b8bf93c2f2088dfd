"""One process at a time in a folder: the second is told, and a killed one leaves nothing behind."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
"""Windows has no such module."""

MARKER = "in_use"
"""The file that stands for the lock where the system has no advisory locks."""


class InUseError(OSError):
    """A folder that another process is writing to."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an existing folder inside the context, or raise at once; nothing in it changes.

    The lock is the kernel's, on the folder itself: it ends with the process, however that ends.
    A file system without such locks gets a file with the name of the process instead.

    Raises:
        InUseError: another process holds it.
    """
    descriptor = lock_folder(folder)
    if descriptor is not None:
        try:
            yield
        finally:
            os.close(descriptor)
        return
    path = folder / MARKER
    descriptor = make_marker(path)
    try:
        yield
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def lock_folder(folder: Path) -> int | None:
    """An open descriptor that holds the lock; None where folders cannot be locked.

    Raises:
        InUseError: another process holds it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise in_use(folder) from None
    except OSError:  # network file systems lock files that can be written, so no folders
        os.close(descriptor)
        return None
    return descriptor


def make_marker(path: Path) -> int:
    """Create the marker file, in place of one whose process is gone; its open descriptor.

    Raises:
        InUseError: its process lives, or is on another machine.
    """
    own = f"{socket.gethostname()} {os.getpid()}"
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if is_held(path):
                raise in_use(path.parent, f"; delete {path} if it is not") from None
            path.unlink(missing_ok=True)
        else:
            os.write(descriptor, own.encode())
            return descriptor
    raise in_use(path.parent)


def is_held(path: Path) -> bool:
    """Whether the process that made a marker may still live."""
    if os.name == "nt":  # there a file that a process holds open cannot be deleted
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return True
        return False
    host, _, process = path.read_text(errors="replace").partition(" ")
    if host != socket.gethostname() or not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def in_use(folder: Path, hint: str = "") -> InUseError:
    """The error for a folder that is taken."""
    return InUseError(
        f"{folder} is in use by another process; wait until it has ended, or choose another "
        f"folder{hint}"
    )
