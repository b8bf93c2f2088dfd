"""The files of a run: written so that they are whole or absent, whatever stops the process.

config.json             what the run computes, and on which text
log.jsonl               one record a line: the first step's measurements, steps, validations
checkpoint.safetensors  everything needed to go on after its step
numerics.jsonl          statistics of every tensor, at the steps that were recorded
result.json             present once the run is finished
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from unitscale.data import Corpus
from unitscale.train.config import TrainConfig

Record = dict[str, Any]


class CheckpointError(RuntimeError):
    """A run that cannot go on: a file of it is damaged, or is of another run."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, numbers that are not finite as null."""
    text = json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def without_nan(value: Any) -> Any:
    """`value` with NaN and infinities replaced by None, in dicts and lists as well."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        CheckpointError: not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); nothing was changed") from error


def describe(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """What config.json holds: the configuration and the identity of the text."""
    return {"config": config.to_json(), "data": corpus.name, "fingerprint": corpus.fingerprint}


def claim_folder(folder: Path, config: TrainConfig, corpus: Corpus, *, resume: bool) -> None:
    """Make `folder` this run's own, or raise before anything in it changes.

    Raises:
        FileExistsError: it holds a run, and `resume` is off.
        ValueError: it holds a run of another configuration.
        CheckpointError: it holds a run whose configuration is damaged.
        OSError: it cannot be written.
    """
    check_run(folder, config, corpus, resume=resume)
    make_folder(folder)
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", describe(config, corpus))


def check_run(folder: Path, config: TrainConfig, corpus: Corpus, *, resume: bool) -> None:
    """Raise if `folder` holds a run that this one may not continue; changes nothing.

    Raises:
        FileExistsError, ValueError, CheckpointError: as `claim_folder`.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    if not resume:
        raise FileExistsError(f"{folder} holds a run already; resume it or choose another folder")
    if difference := first_difference(read_json(path), describe(config, corpus)):
        raise ValueError(f"{folder} holds another run: {difference}; choose another folder")


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, and make sure that files can be created in it.

    Raises:
        OSError: it cannot be created, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {error.strerror}") from error


def first_difference(theirs: Any, mine: Any, name: str = "") -> str | None:
    """One line that names the first value in which two JSON objects differ."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        found = (
            first_difference(theirs.get(key), mine.get(key), key)
            for key in sorted(theirs.keys() | mine.keys())
        )
        return next(filter(None, found), None)
    return None if theirs == mine else f"its {name} is {theirs!r} and not {mine!r}"


class RunLog:
    """log.jsonl: append-only, one JSON object a line, flushed line by line.

    Opened with `through_step`, it first forgets what is beyond that step (written after the
    checkpoint that a run resumes from), and half a line left by a killed process.
    """

    def __init__(self, path: Path, *, through_step: int) -> None:
        self.records = [record for record in read_log(path) if record["step"] <= through_step]
        lines = "".join(map(to_line, self.records))
        write_atomically(path, lambda temporary: temporary.write_text(lines))
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def append(self, record: Record) -> None:
        """Add one record, which has at least a `step`."""
        self.records.append(record)
        self.file.write(to_line(record))

    def sync(self) -> None:
        """Wait until the lines are on the disk, so that no checkpoint is ahead of its log."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file; the records stay readable."""
        self.file.close()

    def losses(self) -> list[float]:
        """The training loss of every step so far, NaN where it was not finite."""
        return [
            math.nan if record["loss"] is None else record["loss"]
            for record in self.records
            if "loss" in record
        ]


def to_line(record: Record) -> str:
    """A record as its line in the log; Python's floats survive the trip bit by bit."""
    return json.dumps(without_nan(record), allow_nan=False) + "\n"


def read_log(path: Path) -> list[Record]:
    """The whole lines of a log; none if there is no file.

    Raises:
        CheckpointError: a whole line is not JSON.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); nothing was changed") from error
