"""Any causal language model as `model(ids, targets) -> loss` over bytes.

The two built-in models are those of `transformers`, unchanged but for their size.
"""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unitscale.models.existing import find_factory

BYTES = 256


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


class NextByte(nn.Module):
    """A model of logits as a model of the loss, by cross-entropy with the targets.

    The same number as `transformers` computes from `labels`, whose shift the targets have already.

    Args:
        model: gives logits [batch, time, at least 256], or an object that has `.logits`, for ids
            [batch, time].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats a byte."""
        output = self.model(ids)
        logits = getattr(output, "logits", output)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def build(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The model of that name, called as `model(ids, targets)`.

    Raises:
        ValueError: as `find_factory`; or the factory returned something else than a model.
    """
    return as_loss(find_factory(name, options)(**options), name)


def as_loss(model: Any, name: str) -> nn.Module:
    """`model` itself if its forward needs or takes targets, else within `NextByte`.

    A forward whose second argument is called `targets` takes them; so does one that cannot be
    called without its second argument. The models of `transformers` are neither.

    Raises:
        ValueError: not a module, or one of fewer than 256 symbols.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returned a {type(model).__name__}; expected a torch.nn.Module")
    symbols = getattr(getattr(model, "config", None), "vocab_size", BYTES)
    if isinstance(symbols, int) and symbols < BYTES:
        raise ValueError(f"{name} has {symbols} symbols; expected one for each of 256 bytes")
    parameters = list(signature(model.forward).parameters.values())
    second = parameters[1] if len(parameters) > 1 else None
    needs_targets = second is not None and (
        second.name == "targets"
        or (second.default is Parameter.empty and second.kind is Parameter.POSITIONAL_OR_KEYWORD)
    )
    return model if needs_targets else NextByte(model)
