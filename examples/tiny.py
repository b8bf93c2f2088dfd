"""What all examples share: a small Llama over bytes, and text to train it on."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

TEXT = torch.frombuffer(bytearray(Path(torch.__file__).read_bytes()), dtype=torch.uint8).long()
LENGTH = 64


def llama() -> LlamaForCausalLM:
    """About 0.1 M parameters, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


class Windows(torch.utils.data.Dataset):
    """Windows of the source text of torch/__init__.py, as transformers takes them."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.starts = torch.randint(len(TEXT) - LENGTH, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = TEXT[self.starts[index] :][:LENGTH]
        return {"input_ids": ids, "labels": ids}


def loader(steps: int, batch_size: int = 8) -> torch.utils.data.DataLoader:
    """Batches in a fixed order."""
    return torch.utils.data.DataLoader(Windows(steps * batch_size), batch_size)
