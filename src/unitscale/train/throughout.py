"""Rounding every tensor of a run: `recipes.Throughout` in force, on any device.

A mode of torch's dispatcher sees each operation of the forward and of the backward pass as it is
computed, and rounds what comes out. So a weight gradient, the sum of two branches and what a norm
gives are rounded as well as products are. With x of one step of a linear layer:

    y = x @ w.T            rounded as the result of mm
    y.grad                 rounded as the result of whatever is behind it
    w.grad = y.grad.T @ x  rounded as the result of mm; then w and Adam's m after the update

Left in FP32 are sums inside one operation, the statistics of norms and of attention, all of the
cross-entropy but the gradient that leaves it, single numbers (the loss), and what is computed from
no tensor of the model (tables of angles).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from unitscale.formats import round_to
from unitscale.recipes import Throughout

__all__ = ["EveryResult", "hold_", "rounded", "rounding", "seed_of"]

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
"""torch's names of what is held as the gradients are; the second moment stays in FP32."""

LOSSES = frozenset(
    {
        *("aten::_log_softmax", "aten::nll_loss_forward", "aten::nll_loss_backward"),
        *("aten::nll_loss2d_forward", "aten::nll_loss2d_backward"),
    }
)
"""The cross-entropy, in FP32 from the logits on; `_log_softmax_backward_data` is what leaves it."""

FIRST_ALONE = frozenset(
    {
        *("aten::native_layer_norm", "aten::native_group_norm", "aten::native_batch_norm"),
        *("aten::_fused_rms_norm", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        *("aten::_scaled_dot_product_flash_attention", "aten::native_dropout"),
        "aten::_scaled_dot_product_efficient_attention",
    }
)
"""Of these the other results are statistics."""


class Places(NamedTuple):
    """Where an operation leaves what is to be rounded: arguments written to, and new results."""

    written: tuple[int | str, ...]
    fresh: tuple[int, ...]


@cache
def places(op: Any) -> Places:
    """Those of an operation, from its schema; a view is rounded where its base is."""
    schema = op._schema
    if schema.name in LOSSES:
        return Places((), ())
    written = tuple(
        argument.name if argument.kwarg_only else index
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    count = 1 if schema.name in FIRST_ALONE else len(schema.returns)
    fresh = (index for index in range(count) if schema.returns[index].alias_info is None)
    return Places(written, tuple(fresh))


def rounded(x: Tensor, how: Throughout, seed: int, *, scale: float = 1.0) -> Tensor:
    """The values of `x` in the format, in float32: `round(x * scale) / scale`.

    Args:
        scale: a power of two.
        seed: of the random bits of stochastic rounding.
    """
    bits = seed if how.rounding == "stochastic" else None
    y = x.detach() if scale == 1.0 else x.detach() * scale
    y = round_to(y, how.format, how.rounding, saturate=False, seed=bits)
    if how.subnormals == "flushed":
        y = y * (y.abs() >= how.format.min_normal).logical_or_(y.isnan())
    return y if scale == 1.0 else y / scale


class EveryResult(TorchDispatchMode):
    """Rounds every float32 result of every operation inside the context.

    Args:
        how: the format.
        seed: of stochastic rounding; each result gets other bits.
    Attributes:
        count: how many tensors were rounded.
    """

    def __init__(self, how: Throughout, seed: int = 0) -> None:
        super().__init__()
        self.how, self.seed, self.count = how, seed, 0
        self.constants = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        where = places(op)
        for index in where.written:
            given = kwargs.get(index) if isinstance(index, str) else args[index]
            if isinstance(given, Tensor) and is_rounded(given):
                given.copy_(self.round(given))
        if not where.fresh:
            return result
        of_model = any(self.is_of_model(x) for x in tree_leaves((args, kwargs)))
        several = isinstance(result, tuple | list)
        results = list(result) if several else [result]
        for index, value in enumerate(results):
            if not of_model and isinstance(value, Tensor):
                self.constants[value] = True
            elif index in where.fresh and is_rounded(value):
                results[index] = self.round(value)
            elif index in where.fresh and isinstance(value, list):  # one return, many tensors
                results[index] = [self.round(x) if is_rounded(x) else x for x in value]
        return type(result)(results) if several else results[0]

    def round(self, x: Tensor) -> Tensor:
        """A tensor in the format, with bits of its own."""
        self.count += 1
        return rounded(x, self.how, (self.seed + self.count) % 2**63)

    def is_of_model(self, x: Any) -> bool:
        """Whether a value is computed from parameters, so that it is no constant of the code."""
        return isinstance(x, Tensor) and x.is_floating_point() and x not in self.constants


def is_rounded(x: Any) -> bool:
    """Whether the format is for this: single numbers, integers and masks are left."""
    return isinstance(x, Tensor) and x.dtype == torch.float32 and x.dim() > 0


@contextmanager
def rounding(how: Throughout | None, *seed: int) -> Iterator[None]:
    """Round every result inside; without `how`, change nothing.

    One context for the forward pass and one for the backward pass: so it is seen if either, in
    another thread say, goes past the mode.

    Args:
        seed: numbers that tell this pass from others.
    Raises:
        RuntimeError: nothing was rounded: no operation inside came by.
    """
    if how is None:
        yield
        return
    with EveryResult(how, seed_of(*seed)) as mode:
        yield
    if not mode.count:
        raise RuntimeError(
            f"no tensor was rounded to {how.format}, though the recipe rounds all of them; run "
            "the model without a compiler (inner 'auto' or 'eager')"
        )


def seed_of(*numbers: int) -> int:
    """63 bits that tell these numbers from others."""
    return int.from_bytes(sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


@torch.no_grad()
def hold_(
    optimizer: torch.optim.Optimizer,
    how: Throughout,
    *,
    loss_scale: float,
    seed: int,
    step: int,
) -> None:
    """Round an optimizer's parameters and first moments in place: there is no master copy.

    The first moment is held at the scale of the loss, as gradients are: divided by it first, it
    would leave the range that the scale is for.

    Args:
        loss_scale: a power of two.
        seed, step: of the run and the update, 0 before the first; they decide the random bits.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        parameter.copy_(rounded(parameter, how, seed_of(seed, step, number)))
        for name in FIRST_MOMENTS:
            moment = optimizer.state.get(parameter, {}).get(name)
            if moment is not None:
                bits = seed_of(seed, step, number, 1)
                moment.copy_(rounded(moment, how, bits, scale=loss_scale))
