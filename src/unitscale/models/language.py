"""The two built-in language models: those of `transformers`, unchanged but for their size."""

from torch import nn

BYTES = 256
"""Symbols: one for each byte."""


def gpt2(*, context: int = 128, width: int = 128, depth: int = 4, heads: int = 2) -> nn.Module:
    """GPT-2 over bytes, without dropout; 0.8 M parameters as it stands."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=BYTES,
            n_positions=context,
            n_embd=width,
            n_layer=depth,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


def llama(*, context: int = 128, width: int = 128, depth: int = 4, heads: int = 2) -> nn.Module:
    """Llama over bytes; 0.9 M parameters as it stands."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=BYTES,
            max_position_embeddings=context,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )
