"""A small Llama that has learned something, so that what is cut from it matters."""

import copy
import functools
import random

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ("unit", "scale", "float", "round", "loss", "step", "tensor", "mantissa")
LENGTH, BATCH = 24, 16
STEPS = 120


@functools.cache
def text():
    """Words in a random order, as symbols from 0 to 26; what is a word is there to be learned."""
    drawn = random.Random(0)
    words = " ".join(drawn.choice(WORDS) for _ in range(4000))
    return torch.tensor([0 if letter == " " else ord(letter) - 96 for letter in words])


def batches(seed, count):
    """Windows of text, with labels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(len(text()) - LENGTH, (BATCH,), generator=generator).tolist()
        ids = torch.stack([text()[at : at + LENGTH] for at in starts])
        yield {"input_ids": ids, "labels": ids}


def untrained(seed=0, **more):
    """Two layers of width 32: four heads of 8."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    other = {"num_key_value_heads": 4, "intermediate_size": 64, "max_position_embeddings": LENGTH}
    known = {"vocab_size": 32, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **other, **known, **more}))


def train(model, loss_of, given, lr=1e-2):
    """Adam at a constant rate."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for batch in given:
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()


@functools.cache
def teacher_that_nobody_changes():
    model = untrained()
    train(model, lambda batch: model(**batch).loss, batches(1, STEPS))
    return model.eval()


def teacher():
    """A trained model of one's own."""
    return copy.deepcopy(teacher_that_nobody_changes())
