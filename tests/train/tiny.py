"""Runs of a second or less, shared by the tests of training."""

from pathlib import Path
from typing import Any

from unitscale.data import Corpus, open_corpus
from unitscale.train import TrainConfig

MODEL = {"width": 32, "depth": 1, "heads": 2}


def tiny_config(**changes: Any) -> TrainConfig:
    """One attention layer and one MLP of width 32, a few steps."""
    options: dict[str, Any] = {
        "recipe": "fp32",
        "model": MODEL,
        "steps": 8,
        "batch_size": 4,
        "sequence_length": 16,
        "eval_windows": 8,
    }
    return TrainConfig(**options | changes)


def text_corpus(folder: Path) -> Corpus:
    """A file of words in no order, so that there is something to learn and no end to it."""
    path = folder / "text.txt"
    words = ["unit", "scale", "float", "round", "loss", "step"]
    path.write_text(" ".join(words[i * i % 7 % 6] for i in range(4000)))
    return open_corpus(path)
