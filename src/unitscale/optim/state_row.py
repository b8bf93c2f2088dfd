"""What one parameter got from `states=`, in a line."""

import math
from dataclasses import dataclass

from torch import Tensor

from .held import Held, describe, field_bytes


@dataclass(frozen=True, kw_only=True)
class StateRow:
    """How the state of one parameter is held.

    states: the name that its group has.
    weight, moments: the codec of each, by the name of the state; "float32" where the codec of
        `states` would take no less.
    bytes: of the whole state, its step counter included, on all processes together.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    states: str
    weight: str
    moments: dict[str, str]
    bytes: int

    def __str__(self) -> str:
        count = max(1, math.prod(self.shape))
        moments = ", ".join(f"{name} {codec}" for name, codec in self.moments.items())
        return (
            f"{self.name} {self.shape} {self.dtype}, {self.states}: weight {self.weight}, "
            f"{moments or 'no moments'}; {self.bytes / count:.3f} bytes a value"
        )


def row_of(name: str, parameter: Tensor, how: Held) -> StateRow:
    """The row of a parameter."""
    shape = tuple(parameter.shape)
    return StateRow(
        name=name,
        shape=shape,
        dtype=str(parameter.dtype).removeprefix("torch."),
        states=how.states,
        weight=describe(how.weight),
        moments={moment: describe(codec) for moment, codec in how.moments},
        bytes=4 + sum(field_bytes(codec, shape) for _, codec in how.codecs()),
    )
