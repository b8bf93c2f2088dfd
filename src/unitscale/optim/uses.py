"""Where a model uses each of its parameters: kind, width, and how deep in residual stacks."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from unitscale.nn.parameter import stated_kind
from unitscale.nn.residual import Residual, Stack

from .rules import KINDS, Kind


@dataclass(frozen=True, kw_only=True)
class Use:
    """One parameter as one module, or one list, holds it.

    Args:
        width: the size that the rule of its kind refers to.
        depth: residual branches around it.
    """

    name: str
    parameter: nn.Parameter
    kind: Kind
    width: int
    depth: int


def uses_of_model(model: nn.Module, kinds: Mapping[str, Kind]) -> Iterable[Use]:
    """Each trainable parameter at its first use, after checking that all its uses agree.

    Raises:
        ValueError: an unknown kind, a pattern that matches nothing, uses that do not agree.
    """
    check_patterns([name for name, _ in model.named_parameters(remove_duplicate=False)], kinds)
    first: dict[nn.Parameter, Use] = {}
    for use in _uses(model, kinds, prefix="", depth=1, in_stream=False):
        tied = first.setdefault(use.parameter, use)
        if use.kind != tied.kind:
            raise ValueError(
                f"param_groups: {tied.name!r} ({tied.kind}) and {use.name!r} ({use.kind}) are one "
                f"tied parameter, which can have one learning rate only; untie them, or choose: "
                f"kinds={{{tied.name!r}: {tied.kind!r}, {use.name!r}: {tied.kind!r}}}."
            )
        if use.depth != tied.depth:
            raise ValueError(
                f"param_groups: {tied.name!r} (depth {tied.depth}) and {use.name!r} (depth "
                f"{use.depth}) are one tied parameter, which can have one learning rate only; "
                f"untie them, or tie them inside one stack."
            )
    return first.values()


def uses_of_parameters(
    given: Sequence[tuple[str, Tensor]], kinds: Mapping[str, Kind], within: nn.Module | None
) -> Iterable[Use]:
    """Each trainable one of `given`, as `within` uses it, or as it says itself.

    Raises:
        ValueError: as `uses_of_model`; a parameter that is not of `within`.
    """
    if within is not None:
        known: dict[Tensor, Use] = {use.parameter: use for use in uses_of_model(within, kinds)}
        for name, parameter in given:
            if parameter.requires_grad:
                if parameter not in known:
                    raise ValueError(
                        f"param_groups: {name!r} of shape {tuple(parameter.shape)} is no parameter "
                        "of the model `within`; pass that model's own parameters."
                    )
                yield known[parameter]
        return
    check_patterns([name for name, _ in given], kinds)
    for name, parameter in given:
        if parameter.requires_grad:
            yield _use(name, name, parameter, None, kinds, depth=1)


def said_kinds(model: nn.Module) -> tuple[list[str], list[str]]:
    """The trainable parameters of a model, by name: those that say their kind, and the others.

    A tied parameter is named at each of its uses.
    """
    said: list[str] = []
    silent: list[str] = []
    for path, module in model.named_modules():
        declared = getattr(module, "parameter_kinds", {})
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.requires_grad:
                says = stated_kind(module, name, parameter) is not None or name in declared
                (said if says else silent).append(f"{path}.{name}" if path else name)
    return said, silent


def _uses(
    module: nn.Module, kinds: Mapping[str, Kind], *, prefix: str, depth: int, in_stream: bool
) -> Iterator[Use]:
    for own_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if parameter.requires_grad:
            yield _use(prefix + own_name, own_name, parameter, module, kinds, depth=depth)
    branches = _branches(module, prefix)
    if isinstance(module, Stack):
        # A stack in a stack is a part of one stream, whose branches the outer one counts.
        depth, in_stream = depth * (1 if in_stream else branches), True
    else:
        depth, in_stream = depth * branches, in_stream and not isinstance(module, Residual)
    for child_name, child in module.named_children():
        yield from _uses(
            child, kinds, prefix=f"{prefix}{child_name}.", depth=depth, in_stream=in_stream
        )


def _use(
    name: str,
    own_name: str,
    parameter: Any,
    module: nn.Module | None,
    kinds: Mapping[str, Kind],
    *,
    depth: int,
) -> Use:
    """The use of one parameter; its kind is the first of what is asked for, stated and declared."""
    stated = stated_kind(module, own_name, parameter)
    declared: Mapping[str, Kind] = getattr(module, "parameter_kinds", {})
    chosen = (kind for pattern, kind in kinds.items() if fnmatchcase(name, pattern))
    kind = next(chosen, stated[0] if stated else declared.get(own_name))
    if kind not in KINDS:
        raise _unknown_kind(name, kind, parameter, module)
    width = stated[1] if stated and stated[0] == kind and stated[1] is not None else None
    if width is None:
        width = _width(name, parameter, kind, module)
    return Use(name=name, parameter=parameter, kind=kind, width=width, depth=depth)


def _branches(module: nn.Module, prefix: str) -> int:
    """How many residual branches a stack has, 1 for any other module.

    Not `depth`: many modules have a number of that name, of other things.
    """
    name = prefix.rstrip(".") or "the model"
    count = getattr(module, "residual_branches", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(
            f"param_groups: residual_branches of {name!r} is {count!r}; it counts the residual "
            f"branches of the stack and must be an integer >= 1."
        )
    if isinstance(module, Stack) and (uncounted := module.uncounted()):
        warnings.warn(
            f"param_groups: the Stack {name!r} counts {count} residual branches, and cannot count "
            f"those of its layers {', '.join(uncounted)}, which are no unn.Residual; a rate is "
            f"divided by the root of the number: give it, as Stack(..., branches=8).",
            UserWarning,
            stacklevel=3,
        )
    return count


def _width(name: str, parameter: Tensor, kind: Kind, module: nn.Module | None) -> int:
    """The dimension that the rule of this kind refers to, by torch's layouts."""
    shape = parameter.shape
    if kind in ("bias", "norm"):
        return max(parameter.numel(), 1)
    if len(shape) < 2:
        raise ValueError(
            f"param_groups: {name!r} is of kind {kind!r}, which needs at least 2 "
            f"dimensions, but has shape {tuple(shape)}; 'bias' or 'norm' suits it."
        )
    if kind == "input":  # a table holds one row per entry, a linear layer one row per output
        if module is None:
            raise ValueError(
                f"param_groups: {name!r} of shape {tuple(shape)} is of kind 'input', and a table "
                "looks like a matrix; say which by us.Parameter(..., width=), or pass the model."
            )
        return int(getattr(module, "embedding_dim", shape[0]))
    if getattr(module, "transposed", False):  # (in, out / groups, *kernel)
        return parameter.numel() // (shape[1] * int(getattr(module, "groups", 1)))
    return parameter.numel() // shape[0]


def _unknown_kind(
    name: str, kind: object, parameter: Tensor, module: nn.Module | None
) -> ValueError:
    legal = ", ".join(KINDS)
    if kind is not None:
        return ValueError(f"param_groups: kind of {name!r} is {kind!r}; the kinds are {legal}.")
    if module is None:
        return ValueError(
            f"param_groups: no kind is known for {name!r} of shape {tuple(parameter.shape)}, so no "
            "learning rate follows; pass the model (or within=model), make the parameter with "
            f"us.Parameter(..., kind=) of {legal}, or use rules=None for torch.optim's rates."
        )
    owner = f"{type(module).__module__}.{type(module).__qualname__}"
    return ValueError(
        f"param_groups: no kind is known for {name!r} (in {owner}), so no learning rate follows; "
        f"use the module of unitscale.nn or us.Parameter(..., kind=), or pass "
        f"kinds={{{name!r}: ...}} with one of {legal}."
    )


def check_patterns(names: Sequence[str], kinds: Mapping[str, Kind]) -> None:
    """Raise ValueError for a pattern that matches no name."""
    for pattern in kinds:
        if not any(fnmatchcase(name, pattern) for name in names):
            nearest = "".join(
                f"; nearest: {name!r}" for name in get_close_matches(pattern, names, 1)
            )
            raise ValueError(f"param_groups: kinds[{pattern!r}] matched no parameter{nearest}.")
