"""Windows: batches are pure functions of (seed, step) and cover the text."""

from pathlib import Path

import numpy as np
import pytest

from unitscale.data import Split, fixed_batches, fixed_windows, sample_windows
from unitscale.data.corpus import Piece


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """1,000 bytes, byte i being i % 251."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(i % 251 for i in range(1000)))
    return Split((Piece(path, 0, 1000),))


def test_sample_windows_depends_on_seed_and_step_only(split: Split) -> None:
    def draw(seed: int, step: int) -> np.ndarray:
        return sample_windows(split, seed=seed, step=step, batch_size=8, length=16)

    assert np.array_equal(draw(0, 3), draw(0, 3))
    assert not np.array_equal(draw(0, 3), draw(0, 4))
    assert not np.array_equal(draw(0, 3), draw(1, 3))


def test_sample_windows_is_frozen(split: Split) -> None:
    # A change of these numbers would break the resumption of every run made before it.
    first_bytes = sample_windows(split, seed=1, step=2, batch_size=4, length=10)[:, 0]
    assert first_bytes.tolist() == [101, 84, 177, 228]


def test_sample_windows_are_slices_of_the_text(split: Split) -> None:
    windows = sample_windows(split, seed=0, step=0, batch_size=50, length=20).astype(int)
    assert windows.shape == (50, 20)
    assert ((np.diff(windows, axis=1) - 1) % 251 == 0).all()


def test_sample_windows_reaches_both_ends(split: Split) -> None:
    # 4 starting points, 200 draws: the chance of missing one is 4 * 0.75**200.
    windows = sample_windows(split, seed=0, step=0, batch_size=200, length=997)
    assert set(windows[:, 0].tolist()) == {0, 1, 2, 3}


def test_fixed_windows_are_evenly_spaced_from_end_to_end(split: Split) -> None:
    windows = fixed_windows(split, count=5, length=200)
    assert windows[:, 0].tolist() == [0, 200, 400 % 251, 600 % 251, 800 % 251]
    assert windows[-1, -1] == 999 % 251


def test_fixed_windows_of_a_text_of_one_window(split: Split) -> None:
    assert (fixed_windows(split, count=3, length=1000)[:, 0] == 0).all()


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_fixed_batches_are_the_fixed_windows_in_pieces(split: Split, batch_size: int) -> None:
    batches = list(fixed_batches(split, count=5, length=200, batch_size=batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    whole = fixed_windows(split, count=5, length=200)
    assert np.array_equal(np.concatenate(batches), whole)


def test_batches_of_a_billion_windows_are_read_one_by_one(split: Split) -> None:
    first = next(fixed_batches(split, count=10**9, length=200, batch_size=4))
    assert first.shape == (4, 200)
