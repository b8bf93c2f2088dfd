"""The corpus: where its bytes come from, how they are split, and what it refuses."""

import os
from pathlib import Path

import pytest

from unitscale.data import Corpus, Split, open_corpus
from unitscale.data.corpus import Piece, is_held_out

TEXT = bytes(range(256)) * 40


@pytest.fixture
def text_path(tmp_path: Path) -> Path:
    """A file of 10,240 bytes."""
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path


def whole(split: Split) -> bytes:
    """Everything in a split."""
    return split.read(0, len(split))


def test_text_file_holds_out_its_last_tenth(text_path: Path) -> None:
    corpus = open_corpus(text_path)
    assert whole(corpus.train) + whole(corpus.valid) == TEXT
    assert len(corpus.valid) == len(TEXT) // 10
    assert corpus.name == "text.txt"


def test_read_equals_the_slice_of_the_joined_pieces(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, (b"01234", b"56", b"789xx"), strict=True):
        path.write_bytes(content)
    split = Split((Piece(paths[0], 0, 5), Piece(paths[1], 0, 2), Piece(paths[2], 0, 3)))
    for start in range(11):
        for stop in range(start, 11):
            assert split.read(start, stop - start) == b"0123456789"[start:stop]


def test_read_honors_the_start_of_a_piece(text_path: Path) -> None:
    assert Split((Piece(text_path, 65, 70),)).read(1, 3) == b"BCD"


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (9, 2), (0, 11)])
def test_read_outside_the_split_is_refused(text_path: Path, start: int, length: int) -> None:
    with pytest.raises(ValueError, match=f"bytes {start} to {start + length} .* split of 10"):
        Split((Piece(text_path, 0, 10),)).read(start, length)


def test_file_truncated_after_opening_is_reported(text_path: Path) -> None:
    corpus = open_corpus(text_path)
    text_path.write_bytes(TEXT[:100])
    with pytest.raises(OSError, match=r"text\.txt: the file became shorter"):
        corpus.train.read(0, 200)


def test_fingerprint_follows_the_content(text_path: Path) -> None:
    first = open_corpus(text_path).fingerprint
    assert open_corpus(text_path).fingerprint == first
    text_path.write_bytes(TEXT[:-1] + b"!")
    assert open_corpus(text_path).fingerprint != first


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.txt does not exist"):
        open_corpus(tmp_path / "missing.txt")


def test_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        open_corpus(tmp_path / "empty.txt")


def test_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a directory; expected a text file"):
        open_corpus(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(text_path: Path) -> None:
    text_path.chmod(0)
    with pytest.raises(PermissionError, match=r"text\.txt"):
        open_corpus(text_path)


@pytest.mark.parametrize(("batch_size", "length"), [(100, 100), (1, 1025)])
def test_text_shorter_than_a_batch_is_refused(
    text_path: Path, batch_size: int, length: int
) -> None:
    corpus = open_corpus(text_path)
    corpus.require(batch_size=90, length=100)
    with pytest.raises(ValueError, match=f"10240 bytes, .* of {batch_size} windows of {length}"):
        corpus.require(batch_size=batch_size, length=length)


def embedded_names(corpus: Corpus) -> tuple[set[str], set[str]]:
    """The file paths of both splits of the embedded corpus."""
    train, valid = (
        {piece.path.as_posix() for piece in split.pieces} for split in (corpus.train, corpus.valid)
    )
    return train, valid


def test_embedded_corpus_is_python_source_split_by_file() -> None:
    corpus = open_corpus()
    train, valid = embedded_names(corpus)
    assert train
    assert valid
    assert not train & valid
    assert all(name.endswith(".py") for name in train | valid)
    assert not any("/site-packages/" in name or "/test/" in name for name in train | valid)
    assert any(name.endswith("/argparse.py") for name in train | valid)
    assert embedded_names(open_corpus()) == (train, valid)


def test_one_name_in_ten_is_held_out() -> None:
    # 10,000 names: the share has a standard error of 0.003.
    share = sum(is_held_out(f"folder/{i}.py") for i in range(10_000)) / 10_000
    assert abs(share - 0.1) < 0.012
