"""Failures as one line on stderr and an exit code."""

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

FAILED = 1
WRONG_ARGUMENTS = 2
STOPPED = 130
"""128 + SIGINT, as a shell reports a process that Ctrl-C ended."""

OF_THE_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
"""Errors of a disk that is full or failing, and of a system that has no more to give."""


def fail(message: str, *, code: int) -> NoReturn:
    """Print one line, unless the help was printed instead, and exit."""
    if message:
        print(one_line(message), file=sys.stderr)
    raise SystemExit(code)


def one_line(message: str) -> str:
    """A message as the one line that a failure is; of several ranks it says which."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    who = f"unitscale, rank {os.environ.get('RANK')}" if several else "unitscale"
    return f"{who}: {' '.join(message.split())}"


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turn what a wrong argument raises into exit code 2, and what the machine lacks into 1."""
    from unitscale.train import CheckpointError, RankError

    try:
        yield
    except (CheckpointError, RankError) as error:
        fail(str(error), code=FAILED)
    except (ValueError, TypeError, OSError, OverflowError, RecursionError) as error:
        fail(in_words(error), code=code_of(error))


def in_words(error: BaseException) -> str:
    """What an error says; of one of the system, without its number and with what was expected."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error)
    path = error.filename if isinstance(error.filename, str) else str(error.filename)
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder; expected a file"
    if isinstance(error, NotADirectoryError):
        return f"{path} is in a file, or is one; expected a folder"
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist; expected the path of something that does"
    return f"{path}: {error.strerror}"


def code_of(error: BaseException) -> int:
    """The exit code of what was raised where arguments are still read: whose fault it is."""
    return FAILED if is_of_the_machine(error) else WRONG_ARGUMENTS


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error, or one that it was raised for, says that a disk is full or failing.

    Libraries in Rust have no `errno`: they write "(os error 28)".
    """
    while True:
        found = getattr(error, "errno", None)
        told = {int(number) for number in re.findall(r"\(os error (\d+)\)", str(error))}
        if found in OF_THE_MACHINE or told & OF_THE_MACHINE:
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__


@contextmanager
def running() -> Iterator[None]:
    """Turn what no program can help into exit code 1, and Ctrl-C into 130.

    That is a damaged run folder, a full disk, too little memory, a factory that fails, or a rank
    that is gone. One whose
    model gives no loss is a wrong argument. Anything else is a bug, and keeps its traceback.
    """
    from unitscale.deploy.calibration import is_out_of_memory
    from unitscale.train import CheckpointError
    from unitscale.train.initial import ModelError, OutputError
    from unitscale.train.ranks import RankError

    try:
        yield
    except OutputError as error:
        fail(str(error), code=WRONG_ARGUMENTS)
    except (CheckpointError, ModelError, OSError, RankError) as error:
        fail(in_words(error), code=FAILED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(
            "not enough memory; a smaller model, batch or sequence needs less "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else 'MemoryError'})",
            code=FAILED,
        )
    except KeyboardInterrupt as stop:
        fail(f"{str(stop) or 'stopped'}; --resume continues from there", code=STOPPED)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn a report that cannot be written, after all that it reports on, into exit code 1."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        fail(f"the run is done, and its report cannot be written: {error}", code=FAILED)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Have Ctrl-C end the process with one line, wherever it is, as long as nothing is training.

    An exception would not do: raised inside an import or a destructor it is printed with its
    traceback, or lost. Every file is put in place in one step, so that nothing is left half
    written. The training loop puts its own handler in place of this one.
    """
    own_thread = threading.current_thread() is threading.main_thread()
    # As Python has it, or as `cli.silence_interrupt` left it; another handler is left alone.
    is_free = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL)
    if not own_thread or not is_free:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        sys.stderr.flush()
        os.write(2, (one_line("stopped") + "\n").encode())
        if atomic := sys.modules.get("unitscale.report.atomic"):  # else nothing is being written
            atomic.remove_unfinished()
        os._exit(STOPPED)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
