"""Text as bytes: a corpus read where it lies, and batches that depend on (seed, step) only."""

from unitscale.data.corpus import Corpus, Split, open_corpus
from unitscale.data.window import fixed_batches, fixed_windows, sample_windows

__all__ = ["Corpus", "Split", "fixed_batches", "fixed_windows", "open_corpus", "sample_windows"]
