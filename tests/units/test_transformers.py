"""Models of `transformers`, unmodified: the same bits as the plain model, in tiny sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from units.training import assert_trains_as_plain
from unitscale.units import rows

transformers = pytest.importorskip("transformers")

# 2026-11-24: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

VOCABULARY = 48


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    """Grouped queries, and each layer checkpointed."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    model = transformers.LlamaForCausalLM(config)
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return transformers.BertForMaskedLM(config)


class Loss(nn.Module):
    """Calls a model with keywords and returns its loss."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.model = make().train()

    def forward(self, input_ids: Tensor, **options: Any) -> Tensor:
        return self.model(input_ids=input_ids, labels=input_ids, use_cache=False, **options).loss


def batch() -> tuple[Tensor]:
    return (torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize("make", [gpt2, llama, bert], ids=lambda f: f.__name__)
def test_training_is_bit_identical(make):
    """Dropout included. A step that measures, and two that run the rewritten graphs."""
    model = assert_trains_as_plain(lambda: Loss(make), batch(), least_units=25)
    held = [row for row in rows(model) if row.reason is None and row.rms is not None]
    assert all(0.70 < row.rms / row.s < 1.42 for row in held)
    assert all(0.70 < row.grad_rms * row.phi < 1.42 for row in held if row.grad_rms is not None)


def test_padding_mask_is_bit_identical():
    """BERT adds `finfo.min` where a mask says so; a sample is masked from its third token on."""
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 2:] = 0

    class Masked(Loss):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(input_ids, attention_mask=mask)

    assert_trains_as_plain(lambda: Masked(bert), batch(), least_units=25)
