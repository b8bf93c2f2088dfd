"""A dense model as a mixture of experts: each MLP becomes copies of it and a router.

Every expert sees every token here, and what a token does not take is weighed by zero: shapes never
depend on data, so that a model stays one graph under a recipe. It costs experts / top times the
multiply-adds of a mixture that sends tokens to experts.

Source: sparse upcycling, arXiv 2212.05055; AquilaMoE, arXiv 2408.06567; losses: arXiv 2101.03961
(balance), arXiv 2202.08906 (z).
"""

import copy
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unitscale.growth.names import EXPERTS, ROUTER
from unitscale.growth.plan import Plan

__all__ = ["Mixture", "mixtures", "replace_mlps", "router_loss"]


class Mixture(nn.Module):
    """Copies of an MLP, of which each token takes the `top` that its router likes best.

    Guarantees that the weights of a token's experts sum to 1, so that equal experts give what one
    of them does. The router's softmax is in float32.

    Args:
        mlp: what is copied; it is the first expert itself.
        width: of its input.
        router_std: of the normal distribution that the router's weights are drawn from.

    Attributes:
        logits: the router's output in the last call, [..., experts], for `router_loss`.
    """

    def __init__(
        self,
        mlp: nn.Module,
        width: int,
        *,
        experts: int,
        top: int,
        router_std: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.top = top
        first = next(mlp.parameters())
        self.experts = nn.ModuleList([mlp, *(copy.deepcopy(mlp) for _ in range(experts - 1))])
        self.router = nn.Linear(width, experts, bias=False, device="meta")
        drawn = torch.randn(experts, width, generator=generator) * router_std
        self.router.weight = nn.Parameter(drawn.to(first.device, first.dtype))
        self.logits: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes: the logits belong to a graph, which has no copy."""
        return {**self.__dict__, "logits": None}

    def forward(self, x: Tensor) -> Tensor:
        """What the experts of each token give, by weight."""
        logits = self.router(x).float()
        self.logits = logits
        values, chosen = logits.softmax(-1).topk(self.top, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, chosen, values)
        gates = (gates / gates.sum(-1, keepdim=True)).to(x.dtype)
        parts = [expert(x) * gates[..., e : e + 1] for e, expert in enumerate(self.experts)]
        total: Tensor = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def replace_mlps(grown: nn.Module, made: Plan) -> None:
    """Put a mixture in the place of each MLP of a grown model, in place."""
    for number, layer in enumerate(grown.get_submodule(made.known.layers).children()):
        name = f"{made.known.layers}.{number}.{made.known.mlp}.{ROUTER}"
        generator = torch.Generator().manual_seed(made.seed + zlib.crc32(name.encode()))
        mlp = layer.get_submodule(made.known.mlp)
        mixture = Mixture(
            mlp,
            made.target.width,
            experts=made.target.experts,
            top=made.top,
            router_std=made.router_std,
            generator=generator,
        )
        mixture.train(mlp.training)
        layer.set_submodule(made.known.mlp, mixture)
    assert hasattr(mixture, EXPERTS)


def mixtures(model: nn.Module) -> Iterator[tuple[str, Mixture]]:
    """The mixtures in a model, by path."""
    for path, module in model.named_modules():
        if isinstance(module, Mixture):
            yield path, module


def router_loss(
    model: nn.Module,
    *,
    balance: float = 1e-3,
    z: float = 1e-2,
    form: Literal["max", "logsumexp"] = "max",
) -> Tensor:
    """What to add to the loss of a mixture: the mean over its layers of two losses.

        balance * E * sum over experts e of (share of the tokens that take e) * (mean probability)
        z * mean over tokens of (largest logit)**2, or of logsumexp(logits)**2

    The first is `balance` if all experts get as much; the shares have no gradient. Call it after
    the forward pass that it is of, once for each backward pass. Under `torch.no_grad()` it may
    be of an evaluation; else it is what a router learns from, and must have a gradient.

    Args:
        model: that `apply` grew with experts=.
        form: of the second loss.

    Raises:
        ValueError: no mixture in the model, or one that was not called; an unknown form; gradients
            are on, and the last forward pass was without: no router would learn.
    """
    if form not in ("max", "logsumexp"):
        raise ValueError(f"router_loss: form is {form!r}; expected 'max' or 'logsumexp'")
    found = list(mixtures(model))
    if not found:
        raise ValueError(
            f"router_loss: this {type(model).__name__} has no mixture of experts; grow one with "
            "us.growth.plan(model, experts=4)"
        )
    losses = []
    for path, mixture in found:
        if mixture.logits is None:
            raise ValueError(f"router_loss: {path!r} was not called yet; run the model first")
        learns = mixture.router.weight.requires_grad and torch.is_grad_enabled()
        if learns and not mixture.logits.requires_grad:
            raise ValueError(
                f"router_loss: {path!r} was last called without gradients, in an evaluation or a "
                "reentrant checkpoint, so that its router would learn nothing; call router_loss "
                "right after the forward pass of training, or under torch.no_grad() for its value"
            )
        logits = mixture.logits.flatten(0, -2)
        size = logits.max(-1).values if form == "max" else logits.logsumexp(-1)
        probabilities = logits.softmax(-1)
        shares = expert_shares(logits, mixture.top)
        even = logits.shape[-1] * (shares * probabilities.mean(0)).sum()
        losses.append(balance * even + z * size.square().mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def expert_shares(logits: Tensor, top: int) -> Tensor:
    """The share of all choices that each expert gets; they sum to 1."""
    chosen = logits.topk(top, dim=-1).indices.flatten()
    return torch.bincount(chosen, minlength=logits.shape[-1]) / chosen.numel()
