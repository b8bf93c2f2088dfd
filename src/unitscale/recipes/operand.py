"""An operand of a matrix product: its format, where its scale comes from, and who shares that.

Every operand has a text, as `E4M3FN current row`, which `parse_operand` reads: rewritten graphs,
rows and tables show it, and products are told of their operands in it. Imports no torch.
"""

import re
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from unitscale.formats import BLOCK_FORMATS, BlockFormat, FloatFormat
from unitscale.formats import parse as parse_format
from unitscale.formats.catalogue import E8M0FNU
from unitscale.formats.granularity import (
    Granularity,
    PerBlock,
    PerTensor,
    PerTile,
    parse_granularity,
)

__all__ = [
    "AS_IS",
    "Cast",
    "Constant",
    "Current",
    "Delayed",
    "Operand",
    "PowerOfTwo",
    "RandomHadamard",
    "Scale",
    "Unit",
    "parse_operand",
]

PowerOfTwo = Literal["floor", "rceil", "ceil", "even"]
"""How a scale becomes a power of two: `floor` is the rule of OCP MX, `rceil` that of Transformer
Engine, whose largest element never saturates; see `unitscale.formats.Codec`."""

RULES: tuple[str, ...] = ("floor", "rceil", "ceil", "even")
LARGEST_MARGIN = 64
LARGEST_RUN = 1024


def check_count(caller: str, name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse what is no whole number in a range."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and low <= value and (high is None or value <= high):  # type: ignore[operator]
        return
    wanted = f"{low} or more" if high is None else f"a whole number from {low} to {high}"
    raise ValueError(f"{caller}: {name} is {value!r}; expected {wanted}")


@dataclass(frozen=True)
class Cast:
    """No scale: values are cast as they are."""


@dataclass(frozen=True)
class Unit:
    """The tensor's unit, a power of two near its RMS; see design and `docs/units.md`.

    For NVFP4 it is the second of the two levels of scales, so that no amax runs over the tensor.
    """


@dataclass(frozen=True)
class Constant:
    """The scale `2**log2` for good: data is `x * 2**-log2`. Perez et al. call `-log2` the bias.

    Raises:
        ValueError: a power that float32 does not hold.
    """

    log2: int = 0

    def __post_init__(self) -> None:
        check_count("Constant", "log2", self.log2, -126, 127)


@dataclass(frozen=True)
class Delayed:
    """`amax / max * 2**margin` with the amax of earlier steps; of this step while there are none.

    Args:
        history: how many steps are remembered.
        margin: binades left free.
        reduce: "max" of the history, or "most_recent".
    Raises:
        ValueError: history below 1, a margin that is negative or above 64, another reduce.
    Source: Transformer Engine's DelayedScaling.
    """

    history: int = 1024
    margin: int = 0
    reduce: Literal["max", "most_recent"] = "max"

    def __post_init__(self) -> None:
        check_count("Delayed", "history", self.history, 1)
        check_count("Delayed", "margin", self.margin, 0, LARGEST_MARGIN)
        if self.reduce not in ("max", "most_recent"):
            raise ValueError(f"Delayed: reduce is {self.reduce!r}; expected max or most_recent")


@dataclass(frozen=True)
class Current:
    """`amax / max * 2**margin` of these very values: a pass over them before they are cast.

    Args:
        power_of_two: the rule that makes the scale a power of two; None keeps it as it is.
        margin: binades left free.
    Raises:
        ValueError: an unknown rule; a margin that is negative or above 64.
    """

    power_of_two: PowerOfTwo | None = None
    margin: int = 0

    def __post_init__(self) -> None:
        if self.power_of_two is not None and self.power_of_two not in RULES:
            raise ValueError(
                f"Current: power_of_two is {self.power_of_two!r}; expected None or one of "
                f"{', '.join(RULES)}"
            )
        check_count("Current", "margin", self.margin, 0, LARGEST_MARGIN)


Scale = Cast | Unit | Constant | Delayed | Current
WORDS: dict[str, type[Any]] = {
    "cast": Cast,
    "unit": Unit,
    "constant": Constant,
    "delayed": Delayed,
    "current": Current,
}


@dataclass(frozen=True)
class RandomHadamard:
    """Runs of `size` values along the contraction, turned by a Hadamard matrix with random signs.

    Both operands of a product are turned alike, so that the product is the same: an outlier is
    spread over its run before it is rounded. The signs are drawn once, for good.

    Raises:
        ValueError: size is no power of two, or above 1024: each run is filled up to it.
    Source: NVIDIA, arXiv 2509.25149, section 4.2 (size 16, on the operands of grad_weight).
    """

    size: int = 16

    def __post_init__(self) -> None:
        check_count("RandomHadamard", "size", self.size, 2, LARGEST_RUN)
        if self.size & (self.size - 1):
            raise ValueError(f"RandomHadamard: size is {self.size}; expected a power of two")


@dataclass(frozen=True)
class Operand:
    """How one operand of one product is rounded.

    Args:
        format: a FloatFormat, a BlockFormat, or None, which leaves the values as they are.
        scale: where its scale comes from.
        granularity: who shares a scale, where it is `Current`. The last axis is that of the
            contraction: `PerAxis()` is a scale for each row, `PerBlock(32)` for each 32 terms.
            A block format has its own, or one for each tile of its size by its size.
        rounding: "nearest", or "stochastic", which is right on average but for what saturates: the
            maxima of blocks whose scale is rounded down, as NVFP4's are and those of the rule
            "floor" (of normal values the mean is 0.9967 x and for MXFP4 0.989 x, see
            `docs/recipes.md`). "rceil" and `margin=1` have none.
        transform: what both operands are turned by before they are rounded.
    Raises:
        TypeError: a part of another type. ValueError: parts that do not go together, or a format
            that `unitscale.formats` does not know by its name.
    """

    format: FloatFormat | BlockFormat | None = None
    scale: Scale = field(default_factory=Cast)
    granularity: Granularity = field(default_factory=PerTensor)
    rounding: Literal["nearest", "stochastic"] = "nearest"
    transform: RandomHadamard | None = None

    def __post_init__(self) -> None:
        self.check_types()
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(
                f"Operand: rounding is {self.rounding!r}; expected nearest or stochastic"
            )
        if isinstance(self.granularity, PerTile) and self.granularity.rows == 1:
            object.__setattr__(self, "granularity", PerBlock(self.granularity.columns))
        if isinstance(self.format, BlockFormat):
            self.settle_blocks(self.format)
        elif self.granularity != PerTensor() and not isinstance(self.scale, Current):
            raise ValueError(
                f"Operand: a scale that is given ({word(self.scale)}) is one for the tensor, not "
                f"for each {self.granularity}; use Current(), or leave the granularity out"
            )
        if getattr(self.granularity, "axis", -1) != -1:
            raise ValueError(
                "Operand: the axis of a granularity is that of the contraction; leave it out"
            )
        plain = isinstance(self.scale, Cast | Unit) and self.rounding == "nearest"
        if self.format is None and not (plain and self.transform is None):
            turned = "" if self.transform is None else f" and transform {self.transform}"
            raise ValueError(
                f"Operand: without a format nothing is rounded, but scale is {word(self.scale)} "
                f"and rounding {self.rounding}{turned}; name a format"
            )
        if self.transform is not None and isinstance(self.scale, Delayed):
            raise ValueError(
                f"Operand: a delayed scale follows the amax of the tensor, and {self.transform} "
                "changes it; use Current()"
            )

    def check_types(self) -> None:
        """Refuse parts of another type, and formats that a text could not name."""
        fmt = self.format
        if not isinstance(fmt, FloatFormat | BlockFormat | None):
            raise TypeError(
                f"Operand: format is {fmt!r}; expected a FloatFormat or a BlockFormat, such as "
                "unitscale.formats.E4M3FN, or None"
            )
        expected: tuple[tuple[str, Any, str], ...] = (
            ("scale", Scale, "Cast(), Unit(), Constant(), Delayed() or Current()"),
            ("granularity", Granularity, "PerTensor(), PerAxis(), PerBlock() or PerTile()"),
            ("transform", RandomHadamard | None, "RandomHadamard() or None"),
        )
        for name, kind, wanted in expected:
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Operand: {name} is {getattr(self, name)!r}; expected {wanted}")
        if isinstance(fmt, FloatFormat) and not (fmt.is_signed and fmt.has_zero):
            raise ValueError(f"Operand: {fmt} has no sign or no zero; expected one with both")
        if fmt is not None and named(fmt.name) != fmt:
            raise ValueError(
                f"Operand: unitscale.formats has no format {fmt.name!r} with these fields; use "
                "one that it has, because products are told of formats by name"
            )

    def settle_blocks(self, fmt: BlockFormat) -> None:
        """Fill in what a block format implies, and refuse what it cannot have."""
        if self.granularity == PerTensor():
            object.__setattr__(self, "granularity", PerBlock(fmt.size))
        if self.granularity not in (PerBlock(fmt.size), PerTile(fmt.size, fmt.size)):
            raise ValueError(
                f"Operand: {fmt} shares a scale among {fmt.size} values or {fmt.size}x{fmt.size}, "
                f"not {self.granularity}"
            )
        if not isinstance(self.scale, Current | Unit):
            raise ValueError(
                f"Operand: the scales of {fmt} are computed; use Current(), or Unit() for its "
                f"tensor scale, not {word(self.scale)}"
            )
        rule = self.scale.power_of_two if isinstance(self.scale, Current) else None
        if fmt.scale == E8M0FNU and isinstance(self.scale, Current) and rule is None:
            object.__setattr__(self, "scale", Current("floor", self.scale.margin))
        if fmt.scale != E8M0FNU and rule is not None:
            raise ValueError(
                f"Operand: the scales of {fmt} are no powers of two; leave the rule out"
            )

    def __str__(self) -> str:
        parts = ["as is" if self.format is None else self.format.name]
        if not (self.format is None and isinstance(self.scale, Cast)):
            parts.append(word(self.scale))
            for part in fields(self.scale):
                value = getattr(self.scale, part.name)
                if value != part.default:
                    parts.append(value if part.name == "power_of_two" else f"{part.name}={value}")
        if self.granularity != PerTensor():
            parts.append(str(self.granularity))
        if self.rounding != "nearest":
            parts.append(self.rounding)
        if self.transform is not None:
            parts.append(f"hadamard={self.transform.size}")
        return " ".join(parts)

    @property
    def element(self) -> FloatFormat | None:
        """The format of its elements: of a block format, of what shares a scale."""
        return self.format.element if isinstance(self.format, BlockFormat) else self.format

    @property
    def rounds(self) -> bool:
        """Whether it changes a value."""
        return self.format is not None

    @property
    def is_per_tensor(self) -> bool:
        """Whether it needs no axis of contraction: one scale, or none, for the whole tensor."""
        return isinstance(self.granularity, PerTensor) and self.transform is None

    @property
    def is_shared(self) -> bool:
        """Whether it is the same function of a matrix and of its transpose.

        Then one copy serves both products that a tensor takes part in.
        """
        same_both_ways = isinstance(self.granularity, PerTensor) or (
            isinstance(self.granularity, PerTile)
            and self.granularity.rows == self.granularity.columns
        )
        return same_both_ways and self.rounding == "nearest" and self.transform is None


AS_IS = Operand()


def word(scale: Scale) -> str:
    """The name of a scale source in a text."""
    return type(scale).__name__.lower()


def named(name: str) -> FloatFormat | BlockFormat | None:
    """The format of a name; None if there is none."""
    try:
        return BLOCK_FORMATS.get(name) or parse_format(name)
    except ValueError:
        return None


WHOLE = re.compile(r"-?[0-9]{1,18}")
"""Numbers in a text. `int` reads more: other scripts, and digits without end."""

SAYS = {
    "granularity": "who shares a scale",
    "power_of_two": "the rule for powers of two",
    "rounding": "the rounding",
    "transform": "the transform",
}


def parse_operand(text: str) -> Operand:
    """The operand of a text: `str` and this are inverse to each other.

    Raises:
        TypeError: no string.
        ValueError: the text is none; says which word of it, or which two contradict each other.
    """
    if not isinstance(text, str):
        raise TypeError(f"parse_operand: text is {text!r}; expected one as 'E4M3FN current row'")
    return parsed(text)


@cache
def parsed(text: str) -> Operand:
    """`parse_operand` of a string, read once."""
    rest = text.split()
    if rest[:2] == ["as", "is"]:
        fmt: FloatFormat | BlockFormat | None = None
        rest = rest[2:]
    elif rest:
        name = rest.pop(0)
        fmt = BLOCK_FORMATS.get(name) or parse_format(name)
    else:
        raise ValueError("an operand's text is empty; expected a format, or 'as is'")
    source = WORDS[rest.pop(0)] if rest and rest[0] in WORDS else Cast
    known = {f.name for f in fields(source)}
    given: dict[str, Any] = {}
    words: dict[str, str] = {}
    for part in rest:
        name, value = part_of(text, part, known)
        if name in given:
            raise ValueError(
                f"operand {text!r}: {words[name]!r} and {part!r} both say "
                f"{SAYS.get(name, name)}; leave one of them out"
            )
        given[name], words[name] = value, part
    scale = source(**{name: given.pop(name) for name in known & given.keys()})
    return Operand(fmt, scale, **given)


def part_of(text: str, part: str, known: set[str]) -> tuple[str, Any]:
    """What one word of a text gives: the name of a part of an operand or of its scale, and it."""
    key, equals, value = part.partition("=")
    granularity = parse_granularity(part)
    if part in RULES and "power_of_two" in known:
        return "power_of_two", part
    if equals and key in known:
        return key, int(value) if WHOLE.fullmatch(value) else value
    if granularity is not None:
        return "granularity", granularity
    if part in ("nearest", "stochastic"):
        return "rounding", part
    if key == "hadamard" and WHOLE.fullmatch(value):
        return "transform", RandomHadamard(int(value))
    raise ValueError(f"operand {text!r}: {part!r} is no part of one")
