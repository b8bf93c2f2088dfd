"""Tiny models of transformers, and how a stock loader is asked for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as T
from torch import Tensor, nn

VOCABULARY = 48
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**HEADS)),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**GROUPED)),
    "gemma2": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**HEADS)),
    "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**GROUPED)),
    "olmo": lambda: T.OlmoForCausalLM(T.OlmoConfig(**GROUPED)),
    "bert": lambda: T.BertForSequenceClassification(T.BertConfig(num_labels=3, **SIZES)),
    "qwen3_moe": lambda: T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(**EXPERTS, **HEADS)),
}
"""One of each kind: what else is here differs from one of them in little, and is tried slowly."""

MORE: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**GROUPED)),
    "gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**HEADS)),
    "gemma3": lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**HEADS)),
    "phi": lambda: T.PhiForCausalLM(T.PhiConfig(**GROUPED)),
    "olmo2": lambda: T.Olmo2ForCausalLM(T.Olmo2Config(**GROUPED)),
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(num_local_experts=4, **GROUPED)),
}


def made(name: str) -> Any:
    """A model by name, at the same weights every time, in eval()."""
    torch.manual_seed(0)
    return (MODELS | MORE)[name]().eval()


def ids(rows: int = 2, length: int = 12) -> Tensor:
    """Token ids, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens).logits
    return found


def stock(folder: Path, **options: Any) -> Any:
    """What the loader of transformers makes of a folder; it must find every tensor, and no more."""
    is_bert = '"BertFor' in (folder / "config.json").read_text()
    auto = T.AutoModelForSequenceClassification if is_bert else T.AutoModelForCausalLM
    model, report = auto.from_pretrained(folder, output_loading_info=True, **options)
    assert_loads_whole(report)
    return model


def assert_loads_whole(report: dict[str, Any]) -> None:
    """A loader's report is no error: this is."""
    found = {what: names for what, names in report.items() if names}
    assert not found, found


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())
