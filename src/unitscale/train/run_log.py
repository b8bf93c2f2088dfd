"""log.jsonl: a record a line, each with a checksum of all lines up to it."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from unitscale.report.checksum import checked, sealed
from unitscale.train.run_folder import CheckpointError, Record, naming, without_nan


class Mark(NamedTuple):
    """A place in a log: so many lines, and the checksum of the last."""

    lines: int = 0
    crc: int = 0


START = Mark()


class RunLog:
    """The log of one run: read up to a mark, continued from there.

    Nothing is written until the context is entered. Then the lines after the mark are removed:
    they were written after the checkpoint that a run resumes from, and will come again. As a
    context it closes the file.

    Args:
        path: the file; it need not exist.
        mark: where the checkpoint was written; what follows may be damaged, and what is before
            may not.

    Raises:
        CheckpointError: the lines before the mark are not those that the checkpoint knows.
    """

    def __init__(self, path: Path, mark: Mark = START) -> None:
        self.path = path
        lines = whole_lines(path)
        if len(lines) < mark.lines:
            raise CheckpointError(
                f"{path} has {len(lines)} of the {mark.lines} lines of its checkpoint; restore the "
                "file, or delete the checkpoint to train from the start"
            )
        self.records, self.mark = check_lines(path, lines[: mark.lines])
        if self.mark != mark:
            raise damaged(path, mark.lines, "it is not the line that the checkpoint knows")
        self.kept_bytes = sum(len(line) + 1 for line in lines[: mark.lines])

    def __enter__(self) -> Self:
        # Unbuffered: a line is with the system when `append` returns, and no rest of a line is
        # left for a second failure when the disk is full.
        self.file = self.path.open("ab", buffering=0)
        self.file.truncate(self.kept_bytes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    def append(self, record: Record) -> None:
        """Add one record, which has at least a `step`."""
        line, crc = to_line(record, self.mark.crc)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise naming(error, self.path) from error
        self.records.append(record)
        self.mark = Mark(self.mark.lines + 1, crc)

    def sync(self) -> None:
        """Wait until the lines are on the disk, so that no checkpoint is ahead of its log."""
        os.fsync(self.file.fileno())


class HeardLog:
    """The log on a rank that writes none: what rank 0 read, and what came since.

    Args:
        records: of the lines up to the mark.
    """

    def __init__(self, records: list[Record], mark: Mark) -> None:
        self.records, self.mark = records, mark

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def append(self, record: Record) -> None:
        """Remember one record. The mark is rank 0's, which is what a checkpoint has."""
        self.records.append(record)

    def sync(self) -> None:
        """There is nothing to wait for."""


def losses(records: list[Record]) -> list[float]:
    """The training loss of every step, NaN where it was not finite."""
    return [
        math.nan if record["loss"] is None else record["loss"]
        for record in records
        if "loss" in record
    ]


def to_line(record: Record, previous: int) -> tuple[bytes, int]:
    """A record as its line in the log, and its checksum after that of the `previous` line.

    Python's floats survive the trip bit by bit.
    """
    return sealed(json.dumps(without_nan(record), allow_nan=False).encode(), previous)


def read_log(path: Path) -> list[Record]:
    """The whole lines of a log; none if there is no file.

    Raises:
        CheckpointError: a line is not the one that was written.
    """
    return check_lines(path, whole_lines(path))[0]


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file without their ends, and without half a line at the end."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def check_lines(path: Path, lines: list[bytes]) -> tuple[list[Record], Mark]:
    """The records of lines from the first on, and the mark after them.

    Raises:
        CheckpointError: a line has no checksum, or another one.
    """
    records: list[Record] = []
    crc = 0
    for number, line in enumerate(lines, 1):
        try:
            body, crc = checked(line, crc)
        except ValueError as error:
            raise damaged(path, number, str(error)) from error
        records.append(parsed(path, number, body))
    return records, Mark(len(lines), crc)


def parsed(path: Path, number: int, body: bytes) -> Record:
    """The object in a line whose checksum is right."""
    try:
        record: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise damaged(path, number, str(error)) from error
    if not isinstance(record, dict) or "step" not in record:
        raise damaged(path, number, "it holds no record of a step")
    return record


def check_recording(path: Path) -> None:
    """Raise unless a recording can be continued.

    Raises:
        CheckpointError: a whole line has no checksum or another one, or is no row of a recording,
            nor its header.
    """
    crc = 0
    for number, line in enumerate(whole_lines(path), 1):
        try:
            body, crc = checked(line, crc)
            row: Any = json.loads(body)
            is_row = isinstance(row, dict) and (
                "formats" in row
                or (isinstance(row["step"], int) and {"name", "direction", "rms"} <= row.keys())
            )
            reason = "" if is_row else "it is no row of a recording"
        except KeyError:
            reason = "it is no row of a recording"
        except (ValueError, RecursionError) as error:
            reason = str(error)
        if reason:
            raise CheckpointError(
                f"{path} is damaged in line {number} ({reason}); nothing was changed: restore the "
                "file, or delete it to record from here on"
            )


def damaged(path: Path, number: int, reason: str) -> CheckpointError:
    """The error for a line that cannot be trusted."""
    return CheckpointError(f"{path} is damaged in line {number} ({reason}); nothing was changed")
