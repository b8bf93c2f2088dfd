"""Single weights set to zero, the smallest first, by the masks of `torch.nn.utils.prune`.

A mask is part of the model: `weight = weight_orig * weight_mask` before each call. Under a recipe
the product rounds the masked weight, so that zeros stay zeros; `check_masks` proves it.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from unitscale.anatomy.output import called, evaluating
from unitscale.compress.permanent import go_on
from unitscale.units.forward import detach, session_of

__all__ = [
    "check_masks",
    "make_permanent",
    "mask_smallest",
    "masked_layers",
    "sparsify",
    "sparsity",
]

MASK, ORIGINAL, COPY = "weight_mask", "weight_orig", "unitscale_mask_copy"


def matrices(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules with a matrix that multiplies, embeddings apart; a tied one is none.

    The `out_proj` of torch's attention is none either: its weight is read without a call, so that a
    mask would not be applied anew and training would stop at it.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    read = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or id(module) in read:
            continue
        weight: Any = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2 and id(weight) not in tables:
            yield name, module


def masked_layers(model: nn.Module) -> dict[str, Any]:
    """Modules whose weight has a mask, by name."""
    return {name: m for name, m in model.named_modules() if hasattr(m, MASK)}


def sparsity(model: nn.Module) -> float:
    """The share of weights that masks set to zero, among those that can be masked."""
    zeros = total = 0
    for _, module in matrices(model):
        mask = getattr(module, MASK, None)
        total += module.weight.numel()
        zeros += 0 if mask is None else int((mask == 0).sum())
    return zeros / max(total, 1)


def mask_smallest(
    model: nn.Module, amount: float, *, layers: Sequence[str] | None = None
) -> nn.Module:
    """Set the smallest weights of each matrix to zero, so that `amount` of them are; in place.

    Masks that are there stay: what was zero remains so. It may be called again with a larger
    amount.

    Args:
        model: plain or under a recipe, which goes on with the masks; see `check_masks`.
        amount: the share of each matrix that is zero afterwards, from 0 to below 1.
        layers: names of modules; None is every matrix but embeddings and the last of
            `nn.MultiheadAttention`.

    Raises:
        ValueError: a share that cannot be, a name that is no matrix, no matrix at all, a matrix
            that is computed, or one with more zeros than that already. The model is left as it was.
    """
    check_amount(amount)
    layers = (layers,) if isinstance(layers, str) else layers
    found = dict(matrices(model))
    if strange := [name for name in layers or () if name not in found]:
        raise ValueError(
            f"compress: {strange[0]!r} is no module with a matrix of its own; one is "
            f"{next(iter(found), 'not there')!r}"
        )
    if not (found if layers is None else layers):
        raise ValueError(
            f"compress: this {type(model).__name__} has no matrix to mask, or layers names none; "
            "expected weights that are parameters: mask before us.deploy.quantize"
        )
    chosen = {name: found[name] for name in (found if layers is None else layers)}
    for name, module in chosen.items():
        if not isinstance(module.weight, nn.Parameter) and not hasattr(module, MASK):
            raise ValueError(
                f"compress: the weight of {name!r} is no parameter but computed (a parametrization,"
                " say) or quantized, so it can have no mask; make it a parameter first, or leave "
                "it out: layers=[...]"
            )
        own = zeros_of(module)
        if own > round(amount * module.weight.numel()):
            raise ValueError(
                f"compress: amount is {amount:g}, and {own / module.weight.numel():.3g} of {name} "
                "is zero by its mask already; expected at least that"
            )
    for module in chosen.values():
        # Of what is left, since torch counts only that.
        more = round(amount * module.weight.numel()) - zeros_of(module)
        prune.l1_unstructured(module, "weight", amount=more)  # type: ignore[no-untyped-call]
        let_copy(module)
    return model


def check_amount(amount: Any) -> None:
    """Refuse what is no share of weights.

    Raises:
        ValueError: not a number from 0 to below 1.
    """
    if not isinstance(amount, int | float) or not 0 <= amount < 1:
        raise ValueError(f"compress: amount is {amount!r}; expected from 0 to below 1, as 0.5")


def zeros_of(module: Any) -> int:
    """How many weights a module's mask sets to zero."""
    mask = getattr(module, MASK, None)
    return 0 if mask is None else int((mask == 0).sum())


def sparsify(
    model: nn.Module,
    amount: float,
    *,
    rounds: int,
    recover: Callable[[nn.Module, int], Any],
    layers: Sequence[str] | None = None,
) -> list[float]:
    """Prune in rounds, with training between them; in place. The sparsity after each round.

    After round r of n, a share of 1 - (1 - amount)^(r / n) is zero: each round takes the same part
    of what is left.

    Args:
        recover: trains the model; called with it and the number of the round.

    Raises:
        TypeError: `recover` cannot be called. ValueError: as `mask_smallest`; no round; `recover`
            removed a mask.
    """
    check_amount(amount)
    if not callable(recover):
        raise TypeError(
            f"compress: recover is {recover!r}; expected a function of the model and the round"
        )
    if type(rounds) is not int or rounds < 1:
        raise ValueError(f"compress: rounds is {rounds!r}; expected a whole number of at least 1")
    found = []
    for number in range(1, rounds + 1):
        mask_smallest(model, 1 - (1 - amount) ** (number / rounds), layers=layers)
        before = sparsity(model)
        recover(model, number)
        if sparsity(model) < before:
            raise ValueError(
                f"compress: after round {number} {sparsity(model):.3g} of the weights are masked, "
                f"and {before:.3g} were before; recover must leave the masks"
            )
        found.append(before)
    return found


@torch.no_grad()
def check_masks(model: nn.Module, batch: Any) -> int:
    """Prove that masks are in force: what they hide changes no output, to the bit.

    Each hidden weight is set to a large value and back. The model is called in eval(), in its
    recipe.

    Args:
        batch: what the model takes.
    Returns:
        how many weights are masked.
    Raises:
        ValueError: no mask, or one that is not in force.
    """
    layers = masked_layers(model)
    if not layers:
        raise ValueError("compress: the model has no mask; call mask_smallest first")
    with evaluating(model):
        _, before = called(model, batch, "compress")
        for name, module in layers.items():
            weight, hidden = getattr(module, ORIGINAL), getattr(module, MASK) == 0
            if not hidden.any():
                continue
            own = weight.detach().clone()
            try:
                weight.masked_fill_(hidden, 1.0 + 100 * own.abs().max().item())
                _, after = called(model, batch, "compress")
            finally:
                weight.copy_(own)
            if not before.equal(after):
                raise ValueError(
                    f"compress: the mask of {name} is not in force: its hidden weights change the "
                    "output; call us.unscale(model), mask, and us.unit_scale(model) again"
                )
    return sum(zeros_of(module) for module in layers.values())


def make_permanent(model: nn.Module) -> nn.Module:
    """Put zeros into the weights and remove the masks, in place: training may fill them again.

    A model under a recipe goes on under it, at the units that it has.

    Raises:
        ValueError: no mask, or a model of which a part alone is under a recipe.
    """
    session = session_of(model)
    if session is None and any(session_of(module) is not None for module in model.modules()):
        raise ValueError(
            "compress: a part of the model is under a recipe; call us.unscale on that part first"
        )
    layers = masked_layers(model)
    if not layers:
        raise ValueError("compress: the model has no mask; call mask_smallest first")
    if session is not None:
        if session.suspended:
            raise ValueError(
                "compress: the model is inside of us.full_precision; call make_permanent after it"
            )
        session.terms.collect()
        detach(model)
    for module in layers.values():
        prune.remove(module, "weight")  # type: ignore[no-untyped-call]
        module.__dict__.pop(COPY, None)
    if session is not None:
        go_on(model, session, layers)
    return model


class MaskCopy:
    """How `copy.deepcopy` gets through a module with a mask.

    Its `weight` is a result of autograd, which torch does not copy. This stands before it in the
    module's `__dict__`, so that it is copied first, and tells the copy what its weight is.
    """

    def __init__(self, module: Any) -> None:
        self.module = weakref.ref(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> "MaskCopy":
        """For the copy: its own masked weight, of its own parameter."""
        module: Any = self.module()
        copied = memo[id(module)]
        if hasattr(module, MASK):
            weight, mask = (copy.deepcopy(getattr(module, n), memo) for n in (ORIGINAL, MASK))
            memo[id(module.weight)] = mask.to(dtype=weight.dtype) * weight
        return MaskCopy(copied)

    def __reduce__(self) -> Any:
        return MaskCopy, (self.module(),)


def let_copy(module: Any) -> None:
    """Have a module with a mask be copied by `copy.deepcopy`."""
    own = module.__dict__
    own.pop(COPY, None)
    weight = own.pop("weight")
    own[COPY] = MaskCopy(module)
    own["weight"] = weight
