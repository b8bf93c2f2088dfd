"""Failures as one line on stderr and an exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

FAILED = 1
WRONG_ARGUMENTS = 2
STOPPED = 130
"""128 + SIGINT, as a shell reports a process that Ctrl-C ended."""


def fail(message: str, *, code: int) -> NoReturn:
    """Print one line, unless the help was printed instead, and exit."""
    if message:
        print(f"unitscale: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turn what a wrong argument raises into exit code 2. Nothing has been computed yet."""
    from unitscale.train import CheckpointError

    try:
        yield
    except CheckpointError as error:
        fail(str(error), code=FAILED)
    except (ValueError, TypeError, OSError) as error:
        fail(str(error), code=WRONG_ARGUMENTS)


@contextmanager
def running() -> Iterator[None]:
    """Turn a damaged run folder or a full disk into exit code 1, and Ctrl-C into 130.

    Anything else is a bug, and keeps its traceback.
    """
    from unitscale.train import CheckpointError

    try:
        yield
    except (CheckpointError, OSError) as error:
        fail(str(error), code=FAILED)
    except KeyboardInterrupt as stop:
        fail(f"{str(stop) or 'stopped'}; --resume continues from there", code=STOPPED)
