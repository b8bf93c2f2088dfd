"""Where the rows of a recording go: a JSONL file, a Parquet file, or a bounded list."""

import json
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from unitscale.formats import FloatFormat
from unitscale.recipes import Recipe
from unitscale.report import FormatLimits
from unitscale.report.checksum import checked, sealed
from unitscale.report.parquet import SUFFIX, ParquetWriter
from unitscale.report.recording import read_rows

Row = dict[str, Any]
FirstRms = dict[tuple[str, str], float]


class Sink:
    """Takes rows, step by step.

    Args:
        path: a JSONL file, or a Parquet file by its name; None keeps rows in memory.
        first_step: rows from this step on in an older JSONL file are dropped, the others kept.
        limit: rows to keep in memory.
        recipe: that of the model, which the first line names if it rounds something.
    Raises:
        ValueError: a Parquet file that exists is to be continued, or pyarrow is missing; a JSONL
            file to be continued is damaged.
    """

    def __init__(
        self,
        path: Path | None,
        formats: Sequence[FloatFormat],
        every: int,
        first_step: int,
        limit: int,
        recipe: Recipe | None = None,
    ) -> None:
        self.header: Row = {"formats": format_limits(formats), "every": every}
        if recipe is not None and recipe.rounds:
            self.header["recipe"] = recipe.name
        self.rows: deque[Row] = deque(maxlen=limit)
        self.limit, self.is_full, self.path = limit, False, path
        self.first_rms: FirstRms = {}
        self.file: IO[bytes] | ParquetWriter | None = None
        self.crc = 0
        if path is None:
            return
        if path.suffix != SUFFIX:
            self.file, self.crc = open_log(path, self.header, first_step, self.first_rms)
        elif first_step > 0 and path.exists():
            raise ValueError(
                f"record: first_step is {first_step} and {path} exists; a Parquet file cannot be "
                "continued; use a file that ends in .jsonl"
            )
        else:
            self.file = ParquetWriter(path, self.header)

    def write(self, rows: list[Row]) -> None:
        """Add the rows of one step."""
        if isinstance(self.file, ParquetWriter):
            self.file.write(rows)
            return
        if self.file is not None:
            for row in rows:
                line, self.crc = sealed(json.dumps(row, separators=(",", ":")).encode(), self.crc)
                self.file.write(line)
            self.file.flush()
            return
        if not self.is_full and len(self.rows) + len(rows) > self.limit:
            self.is_full = True
            warnings.warn(
                f"record: more than {self.limit} rows; the oldest are dropped from here on. "
                "Give a path to keep all, or raise `every`.",
                stacklevel=2,
            )
        self.rows.extend(rows)

    def all_rows(self) -> list[Row]:
        """The rows in memory, or those in the JSONL file without its first line.

        Raises:
            ValueError: they are in a Parquet file, which can be read once it is closed.
        """
        if self.path is None:
            return list(self.rows)
        if self.path.suffix == SUFFIX:
            raise ValueError(
                f"record: the rows are in {self.path} and not in memory; read them after the "
                "recording with unitscale.report.read_recording, or record to a .jsonl file"
            )
        return [dict(row) for row in read_rows(self.path) if "step" in row]

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def format_limits(formats: Sequence[FloatFormat]) -> dict[str, dict[str, float]]:
    """The range of each format by its name, as a recording's first line has it."""
    return {f.name: asdict(FormatLimits(f.max, f.min_normal, f.min_subnormal)) for f in formats}


def open_log(
    path: Path, header: Row, first_step: int, first_rms: FirstRms
) -> tuple[IO[bytes], int]:
    """A file open for more rows, holding the header and the earlier steps of what it held.

    `first_rms` gets the first RMS of every tensor in those, against which drift is measured.

    Returns:
        The file, and the checksum of its last line.
    Raises:
        ValueError: a line of the file is not the one that was written; nothing was changed.
    """
    temporary = path.with_name(path.name + ".tmp")
    kept = earlier(path) if first_step > 0 and path.exists() else ()
    try:
        with temporary.open("wb") as file:
            line, crc = sealed(json.dumps(header).encode(), 0)
            file.write(line)
            for row, body in kept:
                if row.get("step", first_step) < first_step:
                    line, crc = sealed(body, crc)
                    file.write(line)
                    if row.get("rms"):  # a row of what-if has none
                        first_rms.setdefault((row["name"], row["direction"]), row["rms"])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.open("ab"), crc


def earlier(path: Path) -> Iterator[tuple[Row, bytes]]:
    """The objects in a recording, with their bytes; half a line is what a killed process leaves."""
    crc = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                body, crc = checked(line[:-1], crc)
            except ValueError as error:
                raise ValueError(f"record: {path} is damaged in line {number} ({error})") from error
            yield json.loads(body), body
