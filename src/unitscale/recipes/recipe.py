"""A recipe says how every operand of every matrix product is rounded, and by what scale.

The module imports no torch: a recipe is data, and printing it needs nothing else.
"""

import math
import sys
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from unitscale.formats import FloatFormat
from unitscale.formats.granularity import PerBlock, PerTensor
from unitscale.recipes.operand import AS_IS, Cast, Constant, Current, Delayed, Operand, Scale, Unit
from unitscale.recipes.printed import printed
from unitscale.recipes.rule import Gemm, Rule
from unitscale.recipes.throughout import Throughout, check_alone

__all__ = ["Executor", "Recipe", "uniform"]

Executor = Literal["auto", "emulated", "bf16", "scaled_mm"]
OPTIONAL = ("optimizer", "collectives")
NOT_BESIDE = ("rounds", "activations", "saved", "skip", "spare", *OPTIONAL, "loss_scale")
OLD_SOURCES: dict[str, Scale] = {
    "none": Cast(),
    "loss": Cast(),
    "unit": Unit(),
    "current": Current(),
}


@dataclass(frozen=True, kw_only=True, init=False)
class Recipe:
    """Numerics of a whole model.

    Args:
        name: as written on the command line.
        rules: which products are multiplied how: the first rule that matches a product wins, and
            one that no rule matches keeps full precision.
        activations: format every tensor between products is held in, and its gradient; None
            holds them in the dtype of the model. Needs units to be safe.
        saved: what is held for backward outside of products; None holds it as it is. A format
            has element-wise functions (GELU, SiLU, products of two tensors) save their inputs in
            it, and needs units to be safe. An `Operand` with a computed scale holds the inputs of
            norms and of element-wise functions so, once for all that take a tensor, and has
            weights rounded again in backward. Operands of matrix products are saved as the product
            takes them in any case.
        optimizer: name of the optimizer states that go with it; the optimizer is told by itself.
        collectives: likewise, of gradients between processes.
        throughout: one format for every tensor of a training run, see `Throughout`; for
            `unitscale train`, `compare` and `sweep` with a character model.
        loss_scale: a static factor on the loss, or "dynamic" (doubled and halved as overflows come
            and go).
        skip: patterns of module paths whose products stay in full precision.
        spare: likewise, of modules that a model need not have.
        fused: groups of names, as ("gate_proj", "up_proj"): the weights of modules of these names
            that stand side by side share one unit, the largest, because servers join them.
        executor: what multiplies the operands, see `unitscale.gemm.executor`; "auto" is the fastest
            that the device has. It changes the order of sums, never a format.
        source: where the scheme comes from: paper, library, section.
        users: who trains with it, in a few words.

    `forward`, `backward`, `result` and `source="current"` and its kin, of a version before rules,
    are taken with a warning: one format for values, one for gradients, one for results.

    Raises:
        TypeError: rules or skip is no tuple of rules, of patterns; a format or a name is none.
        ValueError: a loss scale that is not positive, or together with units; no such executor; two
            rules for the same path and op.
    """

    name: str
    rules: tuple[Rule, ...]
    activations: FloatFormat | None
    saved: FloatFormat | Operand | None
    optimizer: str | None
    collectives: str | None
    throughout: Throughout | None
    loss_scale: float | Literal["dynamic"] | None
    skip: tuple[str, ...]
    spare: tuple[str, ...]
    fused: tuple[tuple[str, ...], ...]
    executor: Executor
    source: str = field(compare=False)
    users: str = field(compare=False)

    def __init__(
        self,
        *,
        name: str,
        rules: tuple[Rule, ...] = (),
        activations: FloatFormat | None = None,
        saved: FloatFormat | Operand | None = None,
        optimizer: str | None = None,
        collectives: str | None = None,
        throughout: Throughout | None = None,
        loss_scale: float | Literal["dynamic"] | None = None,
        skip: tuple[str, ...] = (),
        spare: tuple[str, ...] = (),
        fused: tuple[tuple[str, ...], ...] = (),
        executor: Executor = "auto",
        source: str = "",
        users: str = "",
        **old: Any,
    ) -> None:
        is_old = isinstance(source, str) and source in OLD_SOURCES
        if old or is_old:
            rules = rules_of_old(name, rules, loss_scale, {**old, "source": source})
            source = "" if is_old else source
        given = locals()
        for name_of_field in self.__dataclass_fields__:
            object.__setattr__(self, name_of_field, given[name_of_field])
        self.check()

    def check(self) -> None:
        """Refuse parts of another type, and what contradicts itself."""
        self.check_types()
        for name, kind in (("rules", Rule), ("skip", str), ("spare", str)):
            values = getattr(self, name)
            if isinstance(values, list):
                values = tuple(values)
                object.__setattr__(self, name, values)
            if not (isinstance(values, tuple) and all(isinstance(x, kind) for x in values)):
                raise TypeError(
                    f"Recipe {self.name!r}: {name} is {values!r}; expected a tuple of "
                    f"{'Rule' if kind is Rule else 'patterns of module paths'}."
                )
        fused: Any = self.fused
        if isinstance(fused, list):
            fused = tuple(tuple(names) if isinstance(names, list) else names for names in fused)
            object.__setattr__(self, "fused", fused)
        if not (isinstance(fused, tuple) and all(map(are_names, fused))):
            raise TypeError(
                f"Recipe {self.name!r}: fused is {self.fused!r}; expected a tuple of groups of two "
                "or more names, as (('gate_proj', 'up_proj'),)."
            )
        if self.throughout is not None:
            check_alone(self.name, self.throughout, {x: getattr(self, x) for x in NOT_BESIDE})
        elif self.loss_scale is not None and self.unit_scaled:
            raise ValueError(
                f"Recipe {self.name!r}: it has units and a loss scale of {self.loss_scale!r}; with "
                "units gradients are at unit scale already, leave one of the two out."
            )
        if self.executor not in get_args(Executor):
            raise ValueError(
                f"Recipe {self.name!r}: executor is {self.executor!r}; expected one of "
                f"{', '.join(get_args(Executor))}."
            )
        seen: set[tuple[str, str]] = set()
        for rule in self.rules:
            if (rule.path, rule.op) in seen:
                raise ValueError(
                    f"Recipe {self.name!r}: two rules for path {rule.path!r} and op {rule.op!r}; "
                    "the second would never be used, leave one of them out."
                )
            seen.add((rule.path, rule.op))

    def check_types(self) -> None:
        """Refuse names that are none, formats that products are not told of, loss scales."""
        for name in ("name", "optimizer", "collectives", "source", "users"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name in OPTIONAL)):
                wanted = "a name or None" if name in OPTIONAL else "a string"
                raise TypeError(f"Recipe {self.name!r}: {name} is {value!r}; expected {wanted}.")
        if not self.name:
            raise ValueError("Recipe: name is ''; expected a word, by which messages tell of it.")
        for name in ("activations", "saved"):
            value = getattr(self, name)
            if name == "saved" and isinstance(value, Operand):
                check_saved(self.name, value)
                continue
            if not isinstance(value, FloatFormat | None):
                also = ", an Operand with a computed scale" if name == "saved" else ""
                raise TypeError(
                    f"Recipe {self.name!r}: {name} is {value!r}; expected a FloatFormat, such as "
                    f"unitscale.formats.FP16{also}, or None."
                )
            if value is not None:
                Operand(value)  # refuses a format without sign or zero, or of another name
        scale = self.loss_scale
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        is_word = isinstance(scale, str) and scale == "dynamic"
        if not (scale is None or is_word or (is_number and 0 < float(scale) < math.inf)):
            raise ValueError(
                f"Recipe {self.name!r}: loss_scale is {scale!r}; expected a positive number, "
                "'dynamic' or None."
            )

    @property
    def gemms(self) -> tuple[Gemm, ...]:
        """The products of its rules, without those in full precision."""
        return tuple(rule.gemm for rule in self.rules if rule.gemm is not None)

    @property
    def main(self) -> Gemm:
        """The products of most layers: of the first rule for all paths, and all linear layers."""
        known = [rule for rule in self.rules if rule.gemm is not None]
        wide = [rule for rule in known if rule.path == "*" and rule.op in ("*", "linear")]
        return next((rule.gemm for rule in (*wide, *known) if rule.gemm is not None), Gemm())

    @property
    def unit_scaled(self) -> bool:
        """Whether tensors are held at their units (by the model's author or by `unit_scale`)."""
        return any(gemm.unit_scaled for gemm in self.gemms)

    @property
    def rounds(self) -> bool:
        """Whether the recipe changes any product."""
        return any(gemm.rounds for gemm in self.gemms)

    @property
    def keeps_layout(self) -> bool:
        """Whether what a factor makes of a tensor lies in memory as the tensor does.

        Kernels choose the order of their sums by that. It is kept where a model is to equal another
        to the bit: the plain one, where nothing is rounded, or the one that a server makes of it.
        """
        return bool(self.fused) or not (self.rounds or self.activations)

    @property
    def is_delayed(self) -> bool:
        """Whether scales are made of the amaxes of earlier steps."""
        operands = (operand for gemm in self.gemms for operand in gemm.operands)
        return any(isinstance(operand.scale, Delayed) for operand in operands)

    @property
    def value(self) -> Operand:
        """How most inputs are rounded."""
        return self.main.output[0]

    @property
    def gradient(self) -> Operand:
        """How most gradients of outputs are rounded."""
        return self.main.grad_input[0]

    @property
    def chosen(self) -> tuple[str, ...]:
        """The numbers and rules in it that a person chose and another run may need otherwise.

        A margin, a history, a constant, a rule for powers of two, a loss scale. Units have none.
        """
        found: dict[str, None] = {}
        if self.loss_scale is not None:
            found[f"loss scale {self.loss_scale}"] = None
        for operand in (operand for gemm in self.gemms for operand in gemm.operands):
            scale = operand.scale
            if isinstance(scale, Constant):
                found[f"constant 2^{scale.log2}"] = None
            if isinstance(scale, Delayed):
                found[f"history {scale.history}"] = found[f"reduce {scale.reduce}"] = None
            if isinstance(scale, Current) and scale.power_of_two is not None:
                found[f"rule {scale.power_of_two}"] = None
            if isinstance(scale, Current | Delayed) and scale.margin:
                found[f"margin {scale.margin}"] = None
            if operand.transform is not None:
                found[f"Hadamard {operand.transform.size}"] = None
        return tuple(found)

    def products(self) -> list[tuple[str, str, str, str]]:
        """The three products of most layers as rows (product, left, right, result)."""
        return self.main.rows()

    def __str__(self) -> str:
        return printed(self)

    def __getattr__(self, name: str) -> Any:
        """The three formats by their names of a version before rules, with a warning."""
        now = {"forward": "value", "backward": "gradient", "result": "main"}.get(name)
        if now is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(
            f"Recipe.{name} is of a version before rules; read recipe.{now} instead",
            DeprecationWarning,
            stacklevel=2,
        )
        found = getattr(self, now)
        return found.results if name == "result" else found.format


def are_names(names: Any) -> bool:
    """Whether these are two names or more, as a tuple."""
    is_group = isinstance(names, tuple) and len(names) > 1
    return is_group and all(isinstance(name, str) for name in names)


def check_saved(name: str, saved: Operand) -> None:
    """Refuse an operand by which nothing could be held between forward and backward.

    Raises:
        ValueError: its scale is not computed from the tensor, or its values take more than a byte,
            are drawn at random or lie in two dimensions.
    """
    fits = isinstance(saved.format, FloatFormat) and saved.format.bits <= 8
    is_plain = saved.rounding == "nearest" and saved.transform is None
    is_along = isinstance(saved.granularity, PerTensor | PerBlock)
    if fits and is_plain and is_along and isinstance(saved.scale, Current):
        return
    raise ValueError(
        f"Recipe {name!r}: saved is {str(saved)!r}; expected 8 bits, a current scale for the "
        "tensor or for groups along its last axis, and nearest, as 'E4M3FN current 1x16'."
    )


def uniform(
    value: FloatFormat | None,
    gradient: FloatFormat | None,
    results: FloatFormat | None = None,
    scale: Any = None,
) -> tuple[Rule, ...]:
    """One rule for every product: a format for values, one for gradients, and one source of scales.

    `scale` is `Cast()` unless it is given. Without a format there is none to compute.
    """
    scale = Cast() if scale is None else scale
    value_operand, gradient_operand = (per_tensor(fmt, scale) for fmt in (value, gradient))
    return (Rule(gemm=Gemm.of(value_operand, gradient_operand, results=results)),)


def rules_of_old(
    name: str, rules: tuple[Rule, ...], loss_scale: Any, old: dict[str, Any]
) -> tuple[Rule, ...]:
    """The rules of a recipe written for a version before rules, or of one changed in its words.

    Raises:
        TypeError: an unknown argument. ValueError: its loss scale and its source do not agree, or
            several rules to be changed at once.
    """
    source = old.pop("source")
    if unknown := old.keys() - {"forward", "backward", "result"}:
        raise TypeError(f"Recipe {name!r}: unexpected arguments {', '.join(sorted(unknown))}.")
    if source in OLD_SOURCES and (source == "loss") != (loss_scale is not None):
        raise ValueError(
            f"Recipe {name!r}: source is {source!r} and loss_scale is {loss_scale!r}; a loss scale "
            "goes with source='loss', and only with it."
        )
    if len(rules) > 1:
        raise ValueError(f"Recipe {name!r}: give rules, or forward, backward and result, not both.")
    warnings.warn(
        f"Recipe {name!r}: forward, backward, result and source are of a version before rules; "
        "write rules=unitscale.recipes.uniform(value, gradient, results, scale).",
        DeprecationWarning,
        stacklevel=frames_to_caller(),
    )
    rule = rules[0] if rules else Rule(gemm=Gemm())
    gemm = rule.gemm or Gemm()
    results = old.pop("result", gemm.results)
    if not old and source not in OLD_SOURCES:
        return (replace(rule, gemm=replace(gemm, results=results)),)
    if not gemm.is_per_tensor or any(x.rounding != "nearest" for x in gemm.operands):
        raise ValueError(
            f"Recipe {name!r}: forward, backward and source are for one scale a tensor, and its "
            f"products are {'; '.join(f'{left} @ {right}' for _, left, right, _ in gemm.rows())}; "
            "write its rules."
        )
    (value, gradient), scale = (gemm.output[0], gemm.grad_input[0]), OLD_SOURCES.get(source)
    changed = Gemm.of(
        per_tensor(old.get("forward", value.format), scale or value.scale),
        per_tensor(old.get("backward", gradient.format), scale or gradient.scale),
        results=results,
    )
    return (replace(rule, gemm=changed),)


def per_tensor(fmt: FloatFormat | None, scale: Scale) -> Operand:
    """An operand with one scale; without a format there is none to compute."""
    return AS_IS if fmt is None and not isinstance(scale, Unit) else Operand(fmt, scale)


def frames_to_caller() -> int:
    """How far up the first frame is that is neither of this file nor of `dataclasses.replace`.

    For a function that asks it: as `stacklevel` of its warning.
    """
    inside = (__name__, "dataclasses", "copy")
    depth, frame = 0, sys._getframe(1)
    while frame.f_globals.get("__name__") in inside and frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth + 1
