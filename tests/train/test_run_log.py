"""log.jsonl: every line as it was written, or one line that says which is not."""

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from unitscale.train import CheckpointError
from unitscale.train.run_log import Mark, RunLog, losses, read_log

RECORDS = [{"step": step, "loss": 1 / 3 + step} for step in range(1, 6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of five steps."""
    with RunLog(tmp_path / "log.jsonl") as log:
        for record in RECORDS:
            log.append(record)
    return tmp_path / "log.jsonl"


def mark(path: Path, lines: int) -> Mark:
    """The place after so many lines of a sound log."""
    line = path.read_bytes().splitlines()[lines - 1]
    return Mark(lines, int(json.loads(line)["crc"], 16))


def test_what_was_written_is_read(path: Path) -> None:
    assert read_log(path) == RECORDS
    assert read_log(path.with_name("none.jsonl")) == []
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a process killed in mid-line
    assert read_log(path) == RECORDS


def test_log_goes_on_from_a_mark_and_forgets_the_rest(path: Path) -> None:
    start = mark(path, 3)
    with path.open("a") as file:
        file.write("#!\n{")  # damage after the checkpoint matters to nobody
    before = path.read_bytes()
    log = RunLog(path, start)
    assert path.read_bytes() == before  # nothing is written before the log is entered
    with log:
        log.append({"step": 4, "loss": math.nan})
    assert [record["step"] for record in read_log(path)] == [1, 2, 3, 4]
    assert losses(read_log(path))[:3] == [1 / 3 + 1, 1 / 3 + 2, 1 / 3 + 3]
    assert math.isnan(losses(read_log(path))[3])


def test_log_without_a_checkpoint_starts_again(path: Path) -> None:
    with RunLog(path) as log:
        log.append({"step": 0})
    assert read_log(path) == [{"step": 0}]


def edit(line: bytes) -> bytes:
    return line.replace(b"333", b"334", 1)


def without_crc(line: bytes) -> bytes:
    record = json.loads(line)
    del record["crc"]
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit, "damaged in line 2 .its checksum does not match"),
        (without_crc, "damaged in line 2 .it has no checksum"),
        (lambda line: b"[]", "line 2 .it has no checksum"),
        (lambda line: b"3", "line 2 .it has no checksum"),
        (lambda line: b"[" * 100_000, "line 2 .it has no checksum"),
        (lambda line: b"\xff" + line, "line 2 .its checksum does not match"),
        (lambda line: line.replace(b'"crc"', b'"CRC"'), "line 2 .it has no checksum"),
    ],
)
def test_changed_line_is_named(path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    start = mark(path, 5)
    lines = path.read_bytes().splitlines()
    lines[1] = change(lines[1])
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    for read in (lambda: read_log(path), lambda: RunLog(path, start)):
        with pytest.raises(CheckpointError, match=message):
            read()
    assert path.read_bytes() == before


@pytest.mark.parametrize("order", [[0, 2, 3, 4], [1, 0, 2, 3, 4], [0, 1, 1, 2, 3, 4]])
def test_lines_lost_moved_or_doubled_are_noticed(path: Path, order: list[int]) -> None:
    start = mark(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(CheckpointError, match=r"damaged in line|4 of the 5 lines"):
        RunLog(path, start)


def test_log_of_another_run_is_noticed(path: Path, tmp_path: Path) -> None:
    with RunLog(tmp_path / "other.jsonl") as log:
        for record in RECORDS:
            log.append(record | {"lr": 1.0})
    with pytest.raises(CheckpointError, match="not the line that the checkpoint knows"):
        RunLog(tmp_path / "other.jsonl", mark(path, 5))


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    start, content = mark(path, 5), path.read_bytes()
    for place in range(len(content)):
        broken = bytearray(content)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(CheckpointError):
            RunLog(path, start)


def test_full_disk_names_the_file_and_leaves_whole_lines(path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    start, size = mark(path, 5), path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"log\.jsonl"), RunLog(path, start) as log:
            log.append({"step": 6, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size + 10
    assert read_log(path) == RECORDS
    assert RunLog(path, start).records == RECORDS
