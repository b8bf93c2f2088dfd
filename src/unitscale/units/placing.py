"""A recipe checked against a model before anything is changed, and what is asked for beside it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape

from torch import nn

from unitscale.formats import FloatFormat
from unitscale.gemm import ProductFormats, choose
from unitscale.graph.place import alias_patterns
from unitscale.recipes import Operand, Recipe, Rule

__all__ = [
    "NOTHING",
    "Beside",
    "Skip",
    "Skipped",
    "fused_weights",
    "placed",
    "rounds_only_products",
    "skipped_by",
    "warn_of_what_is_missing",
]

Skip = Sequence[str] | Callable[[str, nn.Module], bool]
"""Which modules keep full precision: patterns of paths, or a function of a path and its module.

The function is asked of every module inside of the model, and not of the model itself.
"""


@dataclass(frozen=True)
class Skipped:
    """One wish of a person to keep full precision.

    Args:
        label: as a message names it.
        patterns: of module paths, those of the same module by other paths too.
    """

    label: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Beside:
    """What a person asked for beside a recipe: it holds under the next recipe too."""

    skips: tuple[Skipped, ...] = ()
    activations: FloatFormat | None = None
    saved: FloatFormat | Operand | None = None


NOTHING = Beside()
FUNCTION = "the function"
"""The label of what a function, and no pattern, skips."""


def skipped_by(skip: Skip, model: nn.Module, caller: str) -> tuple[Skipped, ...]:
    """The patterns of `skip=`, each with those of the other paths of what it matches.

    Raises:
        TypeError: neither a list nor a function, or a function of something else than True and
            False. ValueError: a pattern matches no module.
    """
    if isinstance(skip, str):
        raise TypeError(f"{caller}: skip is the string {skip!r}; expected a list, [{skip!r}]")
    is_list = isinstance(skip, list | tuple | set | frozenset)
    if isinstance(skip, type) or not (is_list or callable(skip)):
        raise TypeError(
            f"{caller}: skip is {skip!r}; expected a list of patterns of module paths, or a "
            "function of a path and its module"
        )
    if wrong := [p for p in skip if not isinstance(p, str)] if not callable(skip) else []:
        raise TypeError(
            f"{caller}: skip has {wrong[0]!r}; expected patterns of module paths, as text"
        )
    if callable(skip):
        # Not of the model itself, at the path "": what is true of most paths is true of that, and
        # would turn all off.
        named = [x for x in model.named_modules(remove_duplicate=False) if x[0]]
        paths = [escape(path) for path, module in named if asked(skip, path, module, caller)]
        return (Skipped(FUNCTION, (*paths, *alias_patterns(model, paths))),)
    check_patterns(model, skip, caller, "skip")
    return tuple(Skipped(repr(p), (p, *alias_patterns(model, [p]))) for p in skip)


def asked(
    skip: Callable[[str, nn.Module], bool], path: str, module: nn.Module, caller: str
) -> bool:
    """What the function says of one module.

    Raises:
        TypeError: neither True nor False.
    """
    found: object = skip(path, module)
    if isinstance(found, bool):
        return found
    kind = type(found)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    raise TypeError(
        f"{caller}: the function skip gives {str(found)[:60]!r}, of type {name}, "
        f"for {path!r}; expected True (keep it in full precision) or False; write bool(...) "
        "around what it returns"
    )


def placed(recipe: Recipe, model: nn.Module, beside: Beside, caller: str) -> Recipe:
    """A recipe whose patterns are known to match modules of the model, by all their paths.

    Raises:
        ValueError: a pattern matches nothing, nothing would be rounded, or the device has no such
            executor.
    """
    check_patterns(model, recipe.skip, caller, "skip")
    check_patterns(model, [rule.path for rule in recipe.rules if rule.path != "*"], caller, "path")
    rules: dict[tuple[str, str], Rule] = {}
    for rule in recipe.rules:
        aliases = alias_patterns(model, [rule.path]) if rule.path != "*" else ()
        for path in (rule.path, *aliases):
            # Of two rules for the two paths of one module the first counts, as always.
            rules.setdefault((path, rule.op), replace(rule, path=path))
    asked = [pattern for skipped in beside.skips for pattern in skipped.patterns]
    paths = [path for path, _ in model.named_modules()]
    spare = [p for p in recipe.spare if any(fnmatchcase(path, p) for path in paths)]
    asked = [*spare, *alias_patterns(model, spare), *asked]
    recipe = replace(
        recipe,
        rules=tuple(rules.values()),
        skip=(*recipe.skip, *alias_patterns(model, recipe.skip), *asked),
        activations=beside.activations or recipe.activations,
        saved=beside.saved or recipe.saved,
    )
    check_something_is_left(model, recipe, beside, caller)
    check_executor(model, recipe, caller)
    return recipe


def check_something_is_left(model: nn.Module, recipe: Recipe, beside: Beside, caller: str) -> None:
    """Refuse what keeps a whole model in full precision under a recipe that rounds.

    Patterns that match every module inside of it may leave products of its own forward, such as its
    attention: `unused.refuse_nothing_rounded` looks after the first call.
    """
    if not rounds_only_products(recipe):
        return
    name = type(model).__name__
    instead = "leave it out, or take a recipe that rounds nothing ('fp32-units', 'fp32')"
    for pattern in recipe.skip:
        if fnmatchcase("", pattern):
            raise ValueError(
                f"{caller}: skip={pattern!r} matches the {name} itself, whose path is '', so "
                f"recipe {recipe.name!r} would round nothing; {instead}."
            )
    functions = [skipped.patterns for skipped in beside.skips if skipped.label == FUNCTION]
    has_matrix = any(p.dim() > 1 for p in model.parameters(recurse=False))
    if not has_matrix and any(is_all_skipped(model, patterns) for patterns in functions):
        raise ValueError(
            f"{caller}: the function skip is true for every module of this {name}, or for one "
            f"around it, so recipe {recipe.name!r} would round nothing; {instead}. A module is "
            "skipped with all that is inside of it. If the model's own forward multiplies, skip "
            "its modules by a list of patterns."
        )
    for rule in recipe.rules:
        if rule.gemm is not None and rule.gemm.rounds:
            return
        if rule.op == "*" and not rule.path.strip("*"):
            raise ValueError(
                f"{caller}: recipe {recipe.name!r} rounds nothing, because its rule for path "
                f"{rule.path!r} and op '*' is before all that round; move it to the end."
            )


def rounds_only_products(recipe: Recipe) -> bool:
    """Whether a recipe changes something, and nothing but operands and results of products."""
    return recipe.rounds and recipe.activations is None and recipe.saved is None


def is_all_skipped(model: nn.Module, patterns: Sequence[str]) -> bool:
    """Whether every module inside of a model, which has some, matches a pattern or is in one."""
    inside = [path.split(".") for path, _ in model.named_modules() if path]
    return bool(inside) and all(
        any(
            fnmatchcase(".".join(names[:count]), pattern)
            for count in range(1, len(names) + 1)
            for pattern in patterns
        )
        for names in inside
    )


def check_patterns(model: nn.Module, patterns: Sequence[str], caller: str, word: str) -> None:
    """Every pattern must match a module."""
    paths = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = get_close_matches(pattern, paths, n=1, cutoff=0.0)
            hint = f"; for this very path write {escape(pattern)!r}" if pattern in paths else ""
            raise ValueError(
                f"{caller}: {word}={pattern!r} matches no module of {type(model).__name__}; "
                f"nearest path: {near[0] if near else '(none)'!r}{hint}."
            )


def check_executor(model: nn.Module, recipe: Recipe, caller: str) -> None:
    """Refuse FP8 products that the device of the model does not have, before it is compiled."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if not recipe.rounds or first is None:
        return
    try:
        for gemm in recipe.gemms:
            choose(ProductFormats.from_gemm(gemm, recipe.executor), first.dtype, first.device)
    except ValueError as error:
        raise ValueError(f"{caller}, recipe {recipe.name!r}: {error}") from None


def warn_of_what_is_missing(
    recipe: Recipe, model: nn.Module, *, scale: bool, caller: str, stacklevel: int = 4
) -> None:
    """Say what a recipe counts on and the model does not have: its units, or a loss scale."""
    if recipe.loss_scale is not None:
        factor = "a factor" if recipe.loss_scale == "dynamic" else f"{recipe.loss_scale:g}"
        warnings.warn(
            f"{caller}: recipe {recipe.name!r} expects the loss times {factor} and the gradients "
            "divided by it, which a model cannot do; do both in the training loop "
            "(torch.amp.GradScaler does) and pass unitscale.recipes.without_loss_scale(recipe), or "
            "take 'fp16', which needs neither.",
            stacklevel=stacklevel,
        )
    if recipe.unit_scaled and not scale and not is_written_unit_scaled(model):
        warnings.warn(
            f"{caller}: recipe {recipe.name!r} rounds tensors at their units, and this "
            f"{type(model).__name__} has none: every scale is 1, and small gradients become zero. "
            "Call us.unit_scale(model, recipe) instead; if the model is written unit-scaled, take "
            "a recipe that casts, such as 'fp8-none'.",
            stacklevel=stacklevel,
        )


def fused_weights(model: nn.Module, fused: Sequence[Sequence[str]]) -> tuple[frozenset[str], ...]:
    """The weights, by name, of modules of one group of names that stand side by side in a model."""
    found = []
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        weights = {
            name: f"{start}{name}.weight"
            for name, child in module.named_children()
            # Not by getattr: the weight of a parametrization is computed, and may change buffers.
            if "weight" in dict(child.named_parameters(recurse=False))
        }
        groups = (frozenset(weights[n] for n in names if n in weights) for names in fused)
        found += [group for group in groups if len(group) > 1]
    return tuple(found)


def is_written_unit_scaled(model: nn.Module) -> bool:
    """Whether modules of `unitscale.nn` are in a model."""
    library = __name__.partition(".")[0]
    return any(
        kind.__module__.startswith((f"{library}.nn", f"{library}.models"))
        for module in model.modules()
        for kind in type(module).__mro__
    )
