"""Which codec each part of one parameter's state gets, and what that takes."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .moments import Field, MomentCodec
from .parts import Part
from .states import FLOAT32, STATES
from .weights import Master, Own, WeightCodec

MOMENTS: dict[str, tuple[str, ...]] = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
"""torch's names; the second, if there is one, is never below zero."""


class Place(NamedTuple):
    """One tensor of a parameter's state: its name, and where it belongs."""

    name: str
    field: Field
    block: int


@dataclass(frozen=True, kw_only=True)
class Held:
    """The codecs of one parameter.

    states: the name that they come from.
    moments: name and codec.
    """

    states: str
    weight: WeightCodec
    moments: tuple[tuple[str, MomentCodec], ...]

    def places(self) -> Iterator[Place]:
        """All tensors of the state but `step`."""
        for slot, codec in self.codecs():
            for field in codec.fields:
                yield Place(slot + field.suffix, field, codec.block)

    def codecs(self) -> list[tuple[str, MomentCodec | WeightCodec]]:
        """Name and codec of the weight and of the moments."""
        return [(self.weight.slot, self.weight), *self.moments]

    @property
    def is_whole(self) -> bool:
        """Whether a scale of a whole tensor is among them."""
        return self.weight.is_whole or any(codec.is_whole for _, codec in self.moments)

    @property
    def is_coded(self) -> bool:
        """Whether anything differs from plain float32."""
        return not isinstance(self.weight, Own) or any(c != FLOAT32 for _, c in self.moments)

    def is_in(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state has all of these tensors."""
        return "step" in state and all(place.name in state for place in self.places())

    def zeros(self, part: Part, device: torch.device) -> dict[str, Tensor]:
        """The state before the first step."""
        state = {"step": torch.tensor(0.0, dtype=torch.float32)}
        for place in self.places():
            field = place.field
            state[place.name] = part.zeros(field.dtype, field.layout, place.block, device)
        return state


@functools.cache
def held(
    states: str, shape: tuple[int, ...], dtype: torch.dtype, moments: tuple[str, ...]
) -> Held | None:
    """The codecs for a parameter of this shape and dtype; None if its dtype cannot be held.

    A codec that would take no less than float32 gives way to float32.

    Args:
        states: a key of `STATES`.
        moments: the names, of those in `MOMENTS`.
    """
    entry = STATES[states]
    weight = entry.weight.get(dtype)
    if weight is None:
        return None
    plain = 4 * math.prod(shape)
    if isinstance(weight, Master) and field_bytes(weight, shape) >= plain:
        weight = Own() if dtype == torch.float32 else replace(weight, codec=FLOAT32)
    chosen = []
    for name, codec in zip(moments, (entry.first, entry.second), strict=False):
        chosen.append((name, codec if field_bytes(codec, shape) < plain else FLOAT32))
    return Held(states=states, weight=weight, moments=tuple(chosen))


def field_bytes(codec: MomentCodec | WeightCodec, shape: Sequence[int]) -> int:
    """Bytes of the fields of a whole tensor of this shape."""
    width = math.prod(shape[1:])
    part = Part(shape=torch.Size(shape), rows=shape[0] if shape else 1, first=0, width=width)
    return sum(
        math.prod(part.global_shape(field.layout, codec.block)) * field.dtype.itemsize
        for field in codec.fields
    )


def state_nbytes(
    states: str, shape: Sequence[int], dtype: torch.dtype, optimizer: str = "adamw"
) -> int:
    """Bytes of a parameter's state, its step counter included and the parameter itself not.

    What `Held` creates has exactly so many.

    Args:
        states: "fp32", "fp8-lm", "coat", "bf16-stochastic" or "master24".
        optimizer: "adamw", "adam", or "sgd" with momentum.
    Raises:
        ValueError: a name that is none; a dtype that these states cannot hold.
    """
    check_name(states, "state_nbytes")
    if optimizer not in MOMENTS:
        raise ValueError(
            f"state_nbytes: optimizer is {optimizer!r}; expected one of {', '.join(MOMENTS)}."
        )
    found = held(states, tuple(shape), dtype, MOMENTS[optimizer])
    if found is None:
        raise ValueError(f"state_nbytes: {cannot_hold(states, dtype)}.")
    return 4 + sum(field_bytes(codec, shape) for _, codec in found.codecs())


def check_name(states: object, caller: str) -> None:
    """Refuse what is no name of states."""
    if not isinstance(states, str) or states not in STATES:
        raise ValueError(
            f"{caller}: states is {states!r}; expected None or one of "
            f"{', '.join(repr(name) for name in STATES)}."
        )


def cannot_hold(states: str, dtype: torch.dtype) -> str:
    """What to tell of a parameter whose dtype the states do not serve."""
    legal = " or ".join(str(dtype).removeprefix("torch.") for dtype in STATES[states].weight)
    others = ", ".join(repr(name) for name in STATES if dtype in STATES[name].weight)
    remedy = f"convert it, or choose states={others}" if others else "convert it first"
    kind = str(dtype).removeprefix("torch.")
    return f"states={states!r} cannot hold a parameter of {kind}, only of {legal}; {remedy}"


def describe(codec: MomentCodec | WeightCodec) -> str:
    """A codec in a word or two."""
    if isinstance(codec, Master):
        return f"master {describe(codec.codec)}"
    words = [type(codec).__name__.lower()]
    if (fmt := getattr(codec, "format", None)) is not None:
        words.append(str(fmt))
    if codec.block > 1:
        words.append(f"1x{codec.block}")
    return " ".join(words)
