"""The smallest models of the four architectures, with values that hide nothing.

Gains, biases and eps differ from what they begin with, or a wrong factor of them would not show.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 32
Batch = dict[str, Tensor]


def gpt2(**more: Any) -> nn.Module:
    """Two layers of width 12: two heads of 6."""
    config = {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 8, "bos_token_id": 0}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": 0}
    known = {"vocab_size": VOCABULARY, "layer_norm_epsilon": 1e-3, "use_cache": False}
    return roughened(GPT2LMHeadModel(GPT2Config(**{**config, **off, **known, **more})))


def llama(**more: Any) -> nn.Module:
    """Two layers of width 12: four heads of 4 in two groups."""
    config = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}
    other = {"num_key_value_heads": 2, "intermediate_size": 20, "max_position_embeddings": 8}
    known = {"vocab_size": VOCABULARY, "rms_norm_eps": 1e-3, "use_cache": False}
    known |= {"bos_token_id": 0, "eos_token_id": 0}
    return roughened(LlamaForCausalLM(LlamaConfig(**{**config, **other, **known, **more})))


def bert(**more: Any) -> nn.Module:
    """Two layers of width 12: two heads of 6."""
    config = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    other = {"intermediate_size": 20, "max_position_embeddings": 8, "layer_norm_eps": 1e-3}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    known = {"vocab_size": VOCABULARY}
    return roughened(BertForMaskedLM(BertConfig(**{**config, **other, **off, **known, **more})))


def vit(**more: Any) -> nn.Module:
    """Two layers of width 12: two heads of 6, four patches."""
    config = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    other = {"intermediate_size": 20, "image_size": 8, "patch_size": 4, "num_channels": 1}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    known = {"layer_norm_eps": 1e-3, "num_labels": 3}
    return roughened(
        ViTForImageClassification(ViTConfig(**{**config, **other, **off, **known, **more}))
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "gpt2": gpt2,
    "llama": llama,
    "bert": bert,
    "vit": vit,
}


def batch_for(model: nn.Module) -> Batch:
    """A batch with labels, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    if model.config.model_type == "vit":
        pixels = torch.randn(3, 1, 8, 8, generator=generator)
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2])}
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}


@torch.no_grad()
def roughened(model: nn.Module) -> nn.Module:
    """A model whose outputs are of order 1, and none of whose parameters is constant."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + drawn / 4 if is_gain else drawn / 4)
    return model


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Of every parameter, in one call."""
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
