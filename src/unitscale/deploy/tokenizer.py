"""The files of a tokenizer, passed through."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["tokenizer_files"]

TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
)


def tokenizer_files(tokenizer: Any) -> Callable[[Path], object]:
    """What writes the files of a tokenizer into a folder.

    Raises:
        ValueError: a folder without any. TypeError: neither a tokenizer nor a folder.
    """
    if tokenizer is None:
        return lambda folder: None
    if callable(save := getattr(tokenizer, "save_pretrained", None)):
        return lambda folder: save(folder)
    if not isinstance(tokenizer, str | Path):
        raise TypeError(
            f"export: tokenizer is a {type(tokenizer).__name__}; expected one of transformers, or "
            "a folder with its files"
        )
    source = Path(tokenizer)
    files = [file for pattern in TOKENIZER_FILES for file in sorted(source.glob(pattern))]
    if not files:
        raise ValueError(f"export: {source} has no files of a tokenizer, as tokenizer.json")
    return lambda folder: [shutil.copy(file, folder) for file in files]
