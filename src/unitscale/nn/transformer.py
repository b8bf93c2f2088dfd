"""The transformer: MLP, layer and stack."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import unitscale.functional as U
from unitscale.functional.arguments import check_mult

from .attention import MultiheadAttention
from .dropout import Dropout
from .linear import Linear
from .normalization import LayerNorm
from .residual import Multipliers, Residual, RunningMean, Scheme, Stack, check_placement

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"relu": U.relu, "gelu": U.gelu, "silu": U.silu}
GATES: dict[str, Callable[..., Tensor]] = {
    "relu": U.relu_glu,
    "gelu": U.gelu_glu,
    "silu": U.silu_glu,
}


class MLP(nn.Module):
    """Up, activation, down; gated (SwiGLU and its kin) or plain.

    Up and down are unconstrained. Each alone would give a wrong gradient, but they mirror each
    other: the factors of `d -> h` and of `h -> d` cancel along every path, so the pair is valid and
    weights and activations have unit gradients at any expansion.

    Args:
        mult: u-muP's multiplier of the activation's input (the gate's, if `gated`).
    Raises:
        ValueError: an unknown activation; `mult` is not a positive number.
    """

    mult = 1.0  # of a module that was pickled before there was one

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        activation: str = "gelu",
        *,
        gated: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        mult: float = 1.0,
    ) -> None:
        super().__init__()
        check_mult("MLP", mult=mult)
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; use {', '.join(ACTIVATIONS)}.")
        hidden = 4 * width if hidden is None else hidden
        self.activation, self.mult = activation, mult
        self.up = Linear(width, hidden, bias, constraint=None)
        self.gate = Linear(width, hidden, bias, constraint=None) if gated else None
        self.down = Linear(hidden, width, bias, constraint=None)
        self.dropout = Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        if self.gate is None:
            hidden = ACTIVATIONS[self.activation](self.up(x), mult=self.mult)
        else:
            hidden = GATES[self.activation](self.up(x), self.gate(x), mult=self.mult)
        return self.dropout(self.down(hidden))


class SelfAttention(nn.Module):
    """Attention of a sequence to itself: one tensor in, one out, as a branch has to be."""

    def __init__(self, width: int, num_heads: int, *, is_causal: bool, **options: Any) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.attention = MultiheadAttention(width, num_heads, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, width]."""
        return self.attention(x, x, x, is_causal=self.is_causal)[0]


class TransformerLayer(nn.Module):
    """A self-attention branch and an MLP branch.

    Args:
        d_model, nhead, dim_feedforward, dropout, activation: as in torch.nn's encoder layer;
            dim_feedforward None is 4 * d_model.
        placement: where each branch is normalized: "pre", "post", "none", or "res-post".
        scheme: how much each branch adds; `index` of `num_layers` says which layer this is.
        is_causal: position i sees positions 0 .. i only.
        num_kv_heads, gated, bias: of the attention, of the MLP, of both.
        norm: class of the normalization, called with d_model.
        ffn_act_mult, attn_softmax_mult: u-muP's multipliers of the activation's input and of the
            attention's logits.
        residual_mult, residual_attn_ratio: u-muP's multipliers of the branches, see `Multipliers`.
            All four are 1 by default, and then change no bit.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        activation: str = "gelu",
        *,
        placement: str = "pre",
        scheme: Scheme = RunningMean(),  # noqa: B008 - frozen
        index: int = 0,
        num_layers: int = 1,
        is_causal: bool = True,
        num_kv_heads: int | None = None,
        gated: bool = False,
        bias: bool = False,
        norm: Callable[[int], nn.Module] = LayerNorm,
        ffn_act_mult: float = 1.0,
        attn_softmax_mult: float = 1.0,
        residual_mult: float = 1.0,
        residual_attn_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        check_placement(placement)
        check_mult(
            "TransformerLayer", ffn_act_mult=ffn_act_mult, attn_softmax_mult=attn_softmax_mult
        )
        multiplied = Multipliers(
            scheme=scheme, residual_mult=residual_mult, residual_attn_ratio=residual_attn_ratio
        )

        def residual(body: nn.Module, branch: int) -> Residual:
            return Residual(
                body,
                multiplied,
                index=2 * index + branch,
                depth=2 * num_layers,
                norm=None if placement == "none" else norm(d_model),
                placement=placement,
            )

        self.attention = residual(
            SelfAttention(
                d_model,
                nhead,
                dropout=dropout,
                bias=bias,
                num_kv_heads=num_kv_heads,
                is_causal=is_causal,
                mult=attn_softmax_mult,
            ),
            0,
        )
        self.mlp = residual(
            MLP(
                d_model,
                dim_feedforward,
                activation,
                gated=gated,
                bias=bias,
                dropout=dropout,
                mult=ffn_act_mult,
            ),
            1,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, d_model]."""
        return self.mlp(self.attention(x))


class TransformerDecoder(nn.Module):
    """`num_layers` causal layers; `options` are `TransformerLayer`'s. Adds no final norm."""

    def __init__(self, num_layers: int, d_model: int, nhead: int, **options: Any) -> None:
        super().__init__()
        self.layers = Stack(
            *(
                TransformerLayer(d_model, nhead, index=index, num_layers=num_layers, **options)
                for index in range(num_layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, d_model]."""
        return self.layers(x)
