"""What a model is built from: standard parts or unit-scaled ones, behind the same names.

A model written against `Ops` has one definition and two parametrizations. Where only the
unit-scaled one needs something (`scaled`, a free constraint), the standard one does nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

import unitscale.functional as U
from unitscale import nn as unn
from unitscale.scaling import scaled


class WeightedResidual(unn.Residual):
    """The weighted sum of skip and branch, with its own gradient."""

    @staticmethod
    def split(input: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """Skip and branch are the stream itself."""
        return input, input

    @staticmethod
    def add(branch: Tensor, skip: Tensor, tau: float = 1.0) -> Tensor:
        """`(skip + tau * branch) / sqrt(1 + tau^2)`."""
        return (skip + tau * branch) / (1 + tau**2) ** 0.5


class SumResidual(WeightedResidual):
    """The plain sum of the skip and the branch."""

    @staticmethod
    def add(branch: Tensor, skip: Tensor, tau: float = 1.0) -> Tensor:
        """`skip + branch`, whatever tau."""
        return skip + branch


class GlorotLinear(nn.Linear):
    """nn.Linear that starts as Glorot's: variance `2 / (fan_in + fan_out)`, uniform, bias 0."""

    def reset_parameters(self) -> None:
        """Draw anew."""
        glorot_(self)


class GlorotConv1d(nn.Conv1d):
    """nn.Conv1d that starts as Glorot's."""

    def reset_parameters(self) -> None:
        """Draw anew."""
        glorot_(self)


def glorot_(module: nn.Linear | nn.Conv1d) -> None:
    """Initialize as Keras does, and so the standard models of the 2023 paper."""
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def unscaled(x: Tensor, fwd: float = 1.0, bwd: float = 1.0) -> Tensor:
    """`scaled` in a model that has no scale factors: x."""
    return x


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, num_attended: float, mult: float = 1.0
) -> Tensor:
    """F.scaled_dot_product_attention; a softmax is an average, whatever number it is over."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def scaled_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, num_attended: float, mult: float = 1.0
) -> Tensor:
    """U.scaled_dot_product_attention with the factor of an average over `num_attended`.

    The logits are divided by the root of the head's size, as in the 2023 paper and in the standard
    model: at unit scale the logits are too, and so are the gradients of query and key. `mult`
    multiplies them.
    """
    return U.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=mult * query.shape[-1] ** -0.5,
        num_attended=num_attended,
    )


@dataclass(frozen=True, kw_only=True)
class Ops:
    """One set of parts.

    Args:
        linear: a hidden linear layer inside a residual branch.
        mirrored: a linear layer of a pair `d -> h`, `h -> d` inside one branch.
        readout: the linear layer that makes logits.
        residual, sum_residual: wraps a branch; weighted by a scheme, or the model's plain sum.
    """

    name: str
    linear: Callable[..., nn.Linear]
    mirrored: Callable[..., nn.Module]
    readout: Callable[..., nn.Module]
    embedding: Callable[..., nn.Module]
    conv1d: Callable[..., nn.Module]
    layer_norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]
    activation: dict[str, Callable[..., nn.Module]]
    residual: type[unn.Residual]
    sum_residual: type[unn.Residual]
    causal_attention: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
    cross_entropy: Callable[..., Tensor]
    scaled: Callable[[Tensor, float, float], Tensor]

    def __reduce__(self) -> str:
        """Pickle and deepcopy by name: functions and classes are not a model's state."""
        return self.name


STANDARD = Ops(
    name="STANDARD",
    linear=GlorotLinear,
    mirrored=GlorotLinear,
    readout=GlorotLinear,
    embedding=nn.Embedding,
    conv1d=GlorotConv1d,
    layer_norm=nn.LayerNorm,
    dropout=nn.Dropout,
    activation={"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU},
    residual=WeightedResidual,
    sum_residual=SumResidual,
    causal_attention=causal_attention,
    cross_entropy=F.cross_entropy,
    scaled=unscaled,
)

UNIT_SCALED = Ops(
    name="UNIT_SCALED",
    linear=unn.Linear,
    mirrored=partial(unn.Linear, constraint=None),
    readout=unn.LinearReadout,
    embedding=unn.Embedding,
    conv1d=unn.Conv1d,
    layer_norm=unn.LayerNorm,
    dropout=unn.Dropout,
    activation={"gelu": unn.GELU, "relu": unn.ReLU, "silu": unn.SiLU},
    residual=unn.Residual,
    sum_residual=unn.Residual,
    causal_attention=scaled_causal_attention,
    cross_entropy=U.cross_entropy,
    scaled=scaled,
)
