"""Text as BERT takes it: a WordPiece vocabulary of the corpus, two segments, masked tokens."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor

from unitscale.data import Corpus
from unitscale.data.corpus import Split
from unitscale.models.bert import IGNORED
from unitscale.report.atomic import replacing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, FIRST, END, MASK = range(len(SPECIAL))
WRITTEN = {"<unk>": SPECIAL[UNKNOWN], " @-@ ": "-", " @,@ ": ",", " @.@ ": "."}
"""What WikiText's files write in place of rare words and of marks within words."""

MASKED, REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.15, 0.8, 0.1
"""Devlin et al.'s: of the tokens asked about, the last tenth stays as it is."""


def read_lines(split: Split) -> list[str]:
    """The lines of a split, those that are empty left out."""
    text = split.read(0, len(split)).decode("utf-8", "replace")
    for mark, meant in WRITTEN.items():
        text = text.replace(mark, meant)
    return [line for line in map(str.strip, text.splitlines()) if line]


def load_tokenizer(corpus: Corpus, size: int, folder: Path) -> Tokenizer:
    """A tokenizer of `size` pieces, trained on the training text; from `folder` if it is there."""
    path = folder / f"tokenizer-{corpus.fingerprint}-{size}.json"
    if not path.exists():
        made = BertWordPieceTokenizer(lowercase=True)
        made.train_from_iterator(
            read_lines(corpus.train),
            vocab_size=size,
            special_tokens=list(SPECIAL),
            show_progress=False,
        )
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(made.to_str())
    return Tokenizer.from_file(str(path))


def pieces(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without special tokens."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class Batch:
    """What a masked language model is called with; all int64 [batch, time]."""

    ids: Tensor
    targets: Tensor
    segments: Tensor


@dataclass(frozen=True)
class Stream:
    """A split as one row of ids, from which windows are cut."""

    ids: Tensor
    vocab_size: int

    @classmethod
    def of(cls, split: Split, tokenizer: Tokenizer) -> "Stream":
        found = [piece for line in read_lines(split) for piece in pieces(tokenizer, line)]
        return cls(torch.tensor(found), tokenizer.get_vocab_size())

    @cached_property
    def words(self) -> int:
        """How many ids are no special tokens."""
        return self.vocab_size - len(SPECIAL)

    def batch(self, *, batch_size: int, length: int, seed: int, step: int) -> Batch:
        """A batch that depends on (seed, step) only: two halves of a window in two segments."""
        generator = torch.Generator().manual_seed((seed << 32) + step)
        body = length - 3
        starts = torch.randint(len(self.ids) - body, (batch_size, 1), generator=generator)
        windows = self.ids[starts + torch.arange(body)]
        left, right = windows.split([body // 2, body - body // 2], 1)
        first, end = (torch.full((batch_size, 1), token) for token in (FIRST, END))
        ids = torch.cat((first, left, end, right, end), 1)
        segments = (torch.arange(length) >= 2 + body // 2).long().expand(batch_size, -1)
        return self.masked(ids, segments, generator)

    def masked(self, ids: Tensor, segments: Tensor, generator: torch.Generator) -> Batch:
        """The same with tokens to be asked about."""
        draw, how = (torch.rand(ids.shape, generator=generator) for _ in range(2))
        asked = (draw < MASKED) & (ids >= len(SPECIAL))
        other = torch.randint(self.words, ids.shape, generator=generator) + len(SPECIAL)
        shown = torch.where(asked & (how < REPLACED_BY_MASK), MASK, ids)
        is_other = asked & (how >= REPLACED_BY_MASK)
        is_other &= how < REPLACED_BY_MASK + REPLACED_AT_RANDOM
        shown = torch.where(is_other, other, shown)
        return Batch(shown, torch.where(asked, ids, IGNORED), segments.contiguous())
