"""The CPU time of a run, over all processes that made a part of it. Imports no torch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unitscale.train.run_folder import RESULT, CheckpointError, read_object, write_json

FILE = "cpu.json"


@contextmanager
def counting_cpu(folder: Path) -> Iterator[None]:
    """A context whose CPU time, of all threads of this process, is added to that of a run.

    A process that is killed leaves none of its part. A run that another process holds gets none,
    nor one that is done already.
    """
    from unitscale.train.lock import InUseError

    if (folder / RESULT).exists():
        yield
        return
    began = time.process_time()
    try:
        yield
    except InUseError:
        raise
    except BaseException:
        add(folder, time.process_time() - began)
        raise
    else:
        add(folder, time.process_time() - began)


def add(folder: Path, seconds: float) -> None:
    """Add to what a run took, if it has a folder."""
    if folder.is_dir():
        write_json(folder / FILE, {"cpu_s": (cpu_seconds(folder) or 0.0) + seconds})


def cpu_seconds(folder: Path) -> float | None:
    """What a run took; None where nobody counted."""
    try:
        found = read_object(folder / FILE).get("cpu_s")
    except (OSError, CheckpointError):
        return None
    return found if isinstance(found, int | float) else None
