"""The operations of unit-scaling and of this library, side by side: see check_migration.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import unitscale.functional as U

TOLERANCE = 1e-5
"""Of a norm: theirs takes the RMS of a norm in float32, which rounds at 6e-8 an element."""

EXACT = "ours is the exact factor, by quadrature; theirs is fitted"
BIAS = "theirs divides the bias by sqrt(fan_in) forward, with the product"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two functions of the same inputs, and why they differ, if they are to."""

    name: str
    theirs: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Ours over theirs: one factor, and the share of ours that it does not explain."""

    factor: float
    off: float

    @property
    def is_equal(self) -> bool:
        return self.is_scaled and abs(self.factor - 1) <= TOLERANCE

    @property
    def is_scaled(self) -> bool:
        return self.off <= TOLERANCE

    def __str__(self) -> str:
        if self.is_equal:
            return "1"
        return f"{self.factor:.4f}" if self.is_scaled else f"differs ({self.off:.2f})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a case."""

    name: str
    output: Ratio
    grads: dict[str, Ratio] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_equal(self) -> bool:
        return self.output.is_equal and all(ratio.is_equal for ratio in self.grads.values())

    @property
    def is_expected(self) -> bool:
        return self.is_equal == (not self.reason)


def ratio(ours: Tensor, theirs: Tensor) -> Ratio:
    """The least-squares factor from theirs to ours; two tensors of zeros are equal."""
    a, b = ours.detach().double().flatten(), theirs.detach().double().flatten()
    if not (a.norm() and b.norm()):
        return Ratio(factor=1.0, off=float(bool(a.norm() or b.norm())))
    factor = float(a @ b / (b @ b))
    return Ratio(factor=factor, off=float((a - factor * b).norm() / a.norm()))


def compare(case: Case) -> Row:
    """Run both on copies of the inputs, forward and backward."""
    found = []
    for function in (case.ours, case.theirs):
        inputs = {
            name: x.clone().requires_grad_(x.is_floating_point()) for name, x in case.inputs.items()
        }
        output = function(**inputs)
        seed = torch.Generator().manual_seed(1)
        output.backward(torch.randn(output.shape, generator=seed, dtype=output.dtype))
        found.append((output, {n: x.grad for n, x in inputs.items() if x.requires_grad}))
    (ours, our_grads), (theirs, their_grads) = found
    grads = {name: ratio(grad, their_grads[name]) for name, grad in our_grads.items()}
    return Row(name=case.name, output=ratio(ours, theirs), grads=grads, reason=case.reason)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operations(V: Any) -> Iterator[Case]:  # noqa: N803 - theirs is called U, and so is ours
    """One case per function that theirs has; `V` is `unit_scaling.functional`."""
    x, y = normal(8, 32), normal(8, 32, seed=1)
    weight, bias, gain = normal(48, 32, seed=2), normal(48, seed=3), 1 + normal(32, seed=4) / 8
    ids = torch.arange(24).reshape(4, 6) % 10
    heads = {name: normal(2, 4, 64, 16, seed=i) for i, name in enumerate(("query", "key", "value"))}
    logits, target = {"input": normal(12, 20)}, torch.arange(12) % 20
    some = target.where(target % 3 != 0, -100)
    case = partial(Case, inputs={"input": x})

    yield case(name="add", theirs=V.add, ours=U.add, inputs={"input": x, "other": y})
    yield case(
        name="add(x, 1.0)",
        theirs=lambda input: V.add(input, 1.0),
        ours=lambda input: U.add(input, 1.0),
    )
    yield case(
        name="add(x, y, None)",
        theirs=lambda x, y: V.add(x, y, None),
        ours=lambda x, y: U.add(x, y, None),
        inputs={"x": x, "y": y},
        reason="the third argument is theirs' constraint and our weights; constraint=None is equal",
    )
    yield case(
        name="add(x, y, constraint=None)",
        theirs=partial(V.add, constraint=None),
        ours=lambda input, other: U.add(input, other, constraint=None),
        inputs={"input": x, "other": y},
    )
    yield case(name="gelu", theirs=V.gelu, ours=U.gelu, reason=EXACT)
    yield case(name="silu", theirs=V.silu, ours=U.silu, reason=EXACT)
    yield case(
        name="silu_glu",
        theirs=V.silu_glu,
        ours=U.silu_glu,
        inputs={"input": x, "gate": y},
        reason=EXACT,
    )
    yield case(
        name="softmax",
        theirs=lambda input: V.softmax(input, -1),
        ours=lambda input: U.softmax(input, -1),
        reason=f"{EXACT}, and makes the RMS 1 where theirs aims at the spread",
    )
    yield case(
        name="dropout, evaluation",
        theirs=lambda input: V.dropout(input, 0.3, training=False),
        ours=lambda input: U.dropout(input, 0.3, training=False),
    )
    yield Case(
        name="matmul",
        theirs=lambda a, b: V.matmul(a, b),
        ours=lambda a, b: U.matmul(a, b),
        inputs={"a": x, "b": normal(32, 16, seed=5)},
    )
    linear = {"input": x, "weight": weight}
    yield case(name="linear", theirs=partial(V.linear, bias=None), ours=U.linear, inputs=linear)
    yield case(
        name="linear, constraint=None",
        theirs=partial(V.linear, bias=None, constraint=None),
        ours=partial(U.linear, constraint=None),
        inputs=linear,
    )
    yield case(
        name="linear with a bias",
        theirs=V.linear,
        ours=U.linear,
        inputs={**linear, "bias": bias},
        reason=BIAS,
    )
    yield case(
        name="linear with their bias / sqrt(fan_in)",
        theirs=V.linear,
        ours=lambda input, weight, bias: U.linear(input, weight, bias / 32**0.5),
        inputs={**linear, "bias": bias},
        reason="the output is theirs; the gradient of the bias has the factor of the division",
    )
    yield case(
        name="linear_readout",
        theirs=partial(V.linear_readout, bias=None),
        ours=U.linear_readout,
        inputs=linear,
    )
    yield case(
        name="conv1d",
        theirs=partial(V.conv1d, padding=1),
        ours=partial(U.conv1d, padding=1),
        inputs={"input": normal(2, 8, 20), "weight": normal(12, 8, 3, seed=1)},
    )
    norm = {"input": x, "weight": gain}
    yield case(
        name="layer_norm",
        theirs=partial(V.layer_norm, normalized_shape=(32,)),
        ours=partial(U.layer_norm, normalized_shape=(32,)),
        inputs=norm,
    )
    yield case(
        name="rms_norm",
        theirs=partial(V.rms_norm, normalized_shape=(32,)),
        ours=partial(U.rms_norm, normalized_shape=(32,), eps=1e-5),
        inputs=norm,
    )
    yield case(
        name="residual_apply",
        theirs=lambda input: V.residual_apply(torch.tanh, input, 0.5),
        ours=lambda input: U.residual_apply(torch.tanh, input, 0.5),
    )
    yield case(
        name="residual_split, results in the same order",
        theirs=lambda input: V.residual_split(input, 0.5)[0],
        ours=lambda input: U.residual_split(input, 0.5)[0],
        reason="theirs returns (residual, skip), ours (skip, branch)",
    )
    yield case(
        name="embedding",
        theirs=lambda weight: V.embedding(ids, weight),
        ours=lambda weight: U.embedding(ids, weight),
        inputs={"weight": normal(10, 16)},
    )
    for is_causal in (False, True):
        yield case(
            name=f"scaled_dot_product_attention, {'causal' if is_causal else 'all positions'}",
            theirs=partial(V.scaled_dot_product_attention, is_causal=is_causal),
            ours=partial(U.scaled_dot_product_attention, is_causal=is_causal),
            inputs=heads,
            reason="ours is the exact factor, of independent values; theirs is fitted",
        )
    for reduction in ("mean", "sum"):
        yield case(
            name=f"cross_entropy, {reduction}",
            theirs=partial(V.cross_entropy, target=target, reduction=reduction),
            ours=partial(U.cross_entropy, target=target, reduction=reduction),
            inputs=logits,
        )
    yield case(
        name="cross_entropy, a third of the targets ignored",
        theirs=partial(V.cross_entropy, target=some),
        ours=partial(U.cross_entropy, target=some),
        inputs=logits,
        reason="theirs divides the mean by all tokens, ours by the valid ones, as torch does",
    )
    yield case(
        name="mse_loss",
        theirs=V.mse_loss,
        ours=U.mse_loss,
        inputs={"input": x, "target": y},
    )
