"""A corpus is a list of byte ranges in files; nothing is loaded before it is read.

Tokens are bytes (256 of them): any file is a corpus, and a model needs no vocabulary beside it.
"""

import hashlib
import os
import sys
import sysconfig
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

VALID_FRACTION = 0.1

# Installed packages and tests are not the library; the rest are tables rather than text.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    | {"encodings", "pydoc_data"}
)


class Piece(NamedTuple):
    """The bytes `[start, stop)` of one file."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Split:
    """The pieces of a corpus laid end to end; `len` is their total length in bytes."""

    pieces: tuple[Piece, ...]

    @cached_property
    def ends(self) -> list[int]:
        """Where each piece ends, counted from the start of the split."""
        return list(accumulate(piece.stop - piece.start for piece in self.pieces))

    def __len__(self) -> int:
        return self.ends[-1] if self.pieces else 0

    def read(self, start: int, length: int) -> bytes:
        """The bytes `[start, start + length)`, across as many pieces as they span.

        Raises:
            ValueError: the range leaves the split.
            OSError: a file became shorter in the meantime, or cannot be read any more.
        """
        if not 0 <= start <= start + length <= len(self):
            raise ValueError(
                f"Split.read: bytes {start} to {start + length} are outside a split of {len(self)}"
            )
        parts: list[bytes] = []
        index = bisect_right(self.ends, start)
        while length:
            path, _, stop = self.pieces[index]
            first = stop - (self.ends[index] - start)
            count = min(length, stop - first)
            with path.open("rb") as file:
                file.seek(first)
                part = file.read(count)
            if len(part) < count:
                raise OSError(f"{path}: the file became shorter while it was being read")
            parts.append(part)
            start, length, index = start + count, length - count, index + 1
        return b"".join(parts)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text to train on and text held out."""

    name: str
    train: Split
    valid: Split

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the lengths and of 64 evenly spaced blocks: tells two corpora apart."""
        digest = hashlib.sha256(f"{len(self.train)} {len(self.valid)}".encode())
        for split in (self.train, self.valid):
            block = min(len(split), 4096)
            for i in range(32):
                digest.update(split.read((len(split) - block) * i // 31, block))
        return digest.hexdigest()[:16]

    def require(self, *, batch_size: int, length: int) -> None:
        """Raise ValueError unless one batch of windows of `length` bytes fits in the text."""
        train, valid = batch_size * length, length
        if len(self.train) < train or len(self.valid) < valid:
            needed = max(train / (1 - VALID_FRACTION), valid / VALID_FRACTION)
            raise ValueError(
                f"{self.name} is too short: {len(self.train) + len(self.valid)} bytes, where one "
                f"batch of {batch_size} windows of {length} bytes and a validation window need "
                f"about {needed:.0f}; use a longer text, a smaller batch size or shorter windows"
            )


def open_corpus(path: str | os.PathLike[str] | None = None) -> Corpus:
    """The text file at `path` (its last tenth held out), or the embedded corpus without one.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: no readable file at `path`.
        ValueError: the file is empty, or a pipe.
    """
    return standard_library() if path is None else text_file(Path(path))


def text_file(path: Path) -> Corpus:
    """One file, split by position: the first nine tenths train, the last tenth validates."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; expected a text file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a text file")
    if not path.is_file():
        raise ValueError(
            f"{path} is no file on a disk, and text is read from any place in it; save it to a "
            "file first"
        )
    with path.open("rb"):  # readable now, rather than at the first batch
        size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty; expected a text file")
    path = path.resolve()
    cut = size - round(size * VALID_FRACTION)
    return Corpus(
        name=printable(path.name),
        train=Split((Piece(path, 0, cut),)),
        valid=Split((Piece(path, cut, size),)),
    )


def printable(name: str) -> str:
    r"""A file's name as text that can be written anywhere: a byte that is no UTF-8 as \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def standard_library() -> Corpus:
    """The running Python's own standard library as text, split by a hash of each file's name.

    Present wherever Python is, so an example or a demonstration needs no download.

    Raises:
        FileNotFoundError: this Python carries no library source (a frozen or zipped one).
    """
    root = Path(sysconfig.get_path("stdlib"))
    splits: dict[bool, list[Piece]] = {True: [], False: []}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - EXCLUDED_FOLDERS)
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            if size := path.stat().st_size:
                splits[is_held_out(path.relative_to(root).as_posix())].append(Piece(path, 0, size))
    if not (splits[True] and splits[False]):
        raise FileNotFoundError(f"no Python source under {root}; name a text file instead")
    version = ".".join(map(str, sys.version_info[:3]))
    return Corpus(
        name=f"Python {version} standard library",
        train=Split(tuple(splits[False])),
        valid=Split(tuple(splits[True])),
    )


def is_held_out(name: str) -> bool:
    """Whether the file of this relative name validates: a fixed tenth of all names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) < VALID_FRACTION * 2**32
