"""Multi-head attention, with fewer key and value heads if asked."""

from torch import Tensor, nn

import unitscale.functional as U
from unitscale.functional.arguments import check_mult

from .linear import Linear


class MultiheadAttention(nn.Module):
    """torch.nn.MultiheadAttention at unit scale, over F.scaled_dot_product_attention.

    The four projections are ordinary `Linear` modules. Logits are `q @ k / head_dim` (u-muP). As in
    torch the result is a pair; the attention weights in it are None, for they are never formed.

    Args:
        embed_dim: size of the query and of the output; a multiple of `num_heads`.
        dropout: share of attention weights dropped; nothing is dropped in evaluation.
        num_kv_heads: key and value heads, a divisor of `num_heads` (grouped-query attention).
        num_attended: how many keys a query sees, as in U.scaled_dot_product_attention; give it
            where lengths vary and the function should not.
        mult: u-muP's softmax multiplier: logits are `mult * q @ k / head_dim`.
        constraint: of the projections and of the attention. None gives a wrong gradient wherever
            query, key and value come from one tensor.
    Raises:
        ValueError: the sizes do not divide; `mult` is not a positive number.
    """

    mult = 1.0  # of a module that was pickled before there was one

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        num_kv_heads: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        num_attended: float | None = None,
        mult: float = 1.0,
        constraint: str | None = "to_output_scale",
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for name, whole, part in (
            ("embed_dim", embed_dim, num_heads),
            ("num_heads", num_heads, num_kv_heads),
        ):
            if part < 1 or whole % part:
                raise ValueError(
                    f"MultiheadAttention: {name}={whole} is not a multiple of {part}; "
                    "embed_dim must divide by num_heads, and num_heads by num_kv_heads."
                )
        check_mult("MultiheadAttention", mult=mult)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.dropout, self.batch_first, self.constraint = dropout, batch_first, constraint
        self.num_attended, self.mult = num_attended, mult
        kv_dim = num_kv_heads * self.head_dim
        self.q_proj = Linear(embed_dim, embed_dim, bias, constraint=constraint)
        self.k_proj = Linear(kdim or embed_dim, kv_dim, bias, constraint=constraint)
        self.v_proj = Linear(vdim or embed_dim, kv_dim, bias, constraint=constraint)
        self.out_proj = Linear(embed_dim, embed_dim, bias, constraint=constraint)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend from query to key and value.

        Args:
            query, key, value: [time, batch, features], or [batch, time, features] if `batch_first`.
            attn_mask: as F.scaled_dot_product_attention's: True takes part; or an addend.
            is_causal: query i sees keys 0 .. i; excludes `attn_mask`.
        """
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        heads = U.scaled_dot_product_attention(
            split_heads(self.q_proj(query), self.num_heads),
            split_heads(self.k_proj(key), self.num_kv_heads),
            split_heads(self.v_proj(value), self.num_kv_heads),
            attn_mask=attn_mask,
            dropout_p=self.dropout,
            is_causal=is_causal,
            enable_gqa=self.num_kv_heads != self.num_heads,
            mult=self.mult,
            num_attended=self.num_attended,
            training=self.training,
            constraint=self.constraint,
        )
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        return output if self.batch_first else output.transpose(0, 1), None


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[batch, time, heads * size] to [batch, heads, time, size]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
