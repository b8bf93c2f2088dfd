"""The decoder of unit-scaling in our modules, with its parameters: see check_migration.py."""

from collections.abc import Iterable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import unitscale.functional as U
from migration_operations import Row, ratio
from unitscale import nn as unn
from unitscale import optim


class Decoder(nn.Module):
    """Their `TransformerDecoder` in our modules."""

    def __init__(self, width: int, vocab: int, layers: int, heads: int) -> None:
        super().__init__()
        norm = partial(unn.RMSNorm, eps=1e-5, elementwise_affine=False)
        self.embedding = unn.Embedding(vocab, width)
        self.decoder = unn.TransformerDecoder(
            layers,
            width,
            heads,
            activation="silu",
            gated=True,
            scheme=unn.Alternating(),
            norm=norm,
        )
        self.final_norm = norm(width)
        self.projection = unn.LinearReadout(width, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        return self.projection(self.final_norm(self.decoder(self.embedding(ids))))

    def loss(self, ids: Tensor) -> Tensor:
        logits = self(ids).float()
        return U.cross_entropy(logits[..., :-1, :].flatten(end_dim=-2), ids[..., 1:].flatten())


def our_names(name: str) -> list[str]:
    """Where a parameter of theirs goes; one of q, k and v together goes to three."""
    if not name.startswith("layers."):
        return [name]
    _, index, *rest = name.split(".")
    attention = f"decoder.layers.{index}.attention.body.attention."
    mlp = f"decoder.layers.{index}.mlp.body."
    return {
        "mhsa.linear_qkv.weight": [f"{attention}{x}_proj.weight" for x in "qkv"],
        "mhsa.linear_o.weight": [f"{attention}out_proj.weight"],
        "mlp.linear_1.weight": [f"{mlp}up.weight"],
        "mlp.linear_gate.weight": [f"{mlp}gate.weight"],
        "mlp.linear_2.weight": [f"{mlp}down.weight"],
    }[".".join(rest)]


def translated(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Their tensors, parameters or gradients, under our names."""
    return {
        ours: part
        for name, value in tensors
        for ours, part in zip(our_names(name), value.chunk(len(our_names(name))), strict=True)
    }


def decoder(uu: Any, *, same_factors: bool) -> Row:
    """The two decoders with their parameters; on request with our two exact factors in theirs."""
    torch.manual_seed(0)
    theirs = uu.TransformerDecoder(hidden_size=64, vocab_size=40, layers=3, heads=4)
    ours = Decoder(64, 40, 3, 4)
    ours.load_state_dict(translated(theirs.named_parameters()))
    ids = torch.randint(40, (4, 32), generator=torch.Generator().manual_seed(0))
    with mock.patch.multiple(
        uu.functional,
        **{name: getattr(U, name) for name in ("scaled_dot_product_attention", "silu_glu")}
        if same_factors
        else {"silu_glu": uu.functional.silu_glu},
    ):
        logits = theirs(ids)
        theirs.loss(ids).backward()
    own = ours(ids)
    ours.loss(ids).backward()
    their_grads = translated((name, p.grad) for name, p in theirs.named_parameters())
    grads = {name: ratio(p.grad, their_grads[name]) for name, p in ours.named_parameters()}
    name = (
        "TransformerDecoder, our attention and silu_glu in theirs"
        if same_factors
        else ("TransformerDecoder")
    )
    reason = "" if same_factors else "the factors of silu_glu and attention, as above"
    return Row(name=name, output=ratio(own, logits), grads=grads, reason=reason)


def rates(uu: Any) -> dict[str, tuple[float, float]]:
    """The rate of each parameter at a base rate of 1: theirs and ours, with a bias and a gain."""
    theirs = nn.ModuleDict(
        {
            "decoder": uu.TransformerDecoder(hidden_size=64, vocab_size=40, layers=3, heads=4),
            "linear": uu.Linear(64, 64, bias=True),
            "norm": uu.LayerNorm(64, elementwise_affine=True),
        }
    )
    ours = nn.ModuleDict(
        {
            "decoder": Decoder(64, 40, 3, 4),
            "linear": unn.Linear(64, 64),
            "norm": unn.LayerNorm(64),
        }
    )
    found = {}
    for name, p in theirs.named_parameters():
        inside = name.startswith("decoder.")
        names = our_names(name.removeprefix("decoder.")) if inside else [name]
        prefix = "decoder." if inside else ""
        found |= {f"{prefix}{own}": uu.optim.lr_scale_func_adam(p) for own in names}
    groups = optim.param_groups(ours, lr=1.0)
    own = {name: group["lr"] for group in groups for name in group["param_names"]}
    return {name: (found[name], rate) for name, rate in own.items()}
