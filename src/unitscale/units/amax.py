"""`AmaxHistory`: amaxes of earlier steps, of which delayed scales are made."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from unitscale.recipes import Delayed, Operand
from unitscale.units.assign import Monomial

__all__ = ["AmaxHistory", "DelayedRun"]

Amaxes = dict[str, float]


@dataclass(eq=False, kw_only=True)
class DelayedRun:
    """One run of a graph with operands that have delayed scales.

    Args:
        slots: their names, and how each is rounded.
        units: what each is held at.
        log2: the exponent of that in this run, once it is over.
        arrived: whether its backward pass brought the amaxes.
    """

    slots: list[tuple[str, Operand]]
    units: list[Monomial]
    log2: Callable[[Monomial], int]
    arrived: bool = False

    def true(self, amaxes: Iterable[float]) -> list[float]:
        """The amaxes of the true values, from those of the values as they are held."""
        pairs = zip(amaxes, self.units, strict=True)
        return [amax * 2.0 ** self.log2(unit) for amax, unit in pairs]


class AmaxHistory:
    """Per operand of a product, the amaxes of its last steps, the latest first.

    Attributes:
        needed: whether the recipe makes scales of them.
        unshared: those of steps that are in no history yet.
        is_shared: whether the last histories were those of several processes together.
    """

    def __init__(self) -> None:
        self.needed, self.is_shared = False, False
        self.known: dict[str, list[float]] = {}
        self.lengths: dict[str, int] = {}
        self.unshared: list[Amaxes] = []

    def note(self, slots: Iterable[tuple[str, Operand]], amaxes: Iterable[float]) -> None:
        """Remember the amaxes of one step; 0 is that of an operand whose product did not run.

        One that is not finite is not kept: the scale stays, and the next step has another try.

        Args:
            slots: the names of the operands, and how each is rounded.
            amaxes: of the true values, whatever unit they are held at: units change.
        """
        step: Amaxes = {}
        for (name, operand), amax in zip(slots, amaxes, strict=True):
            if isinstance(operand.scale, Delayed):
                self.lengths[name] = operand.scale.history
                step[name] = amax
        self.unshared.append(step)

    def settle(self, merge: Callable[[list[Amaxes]], list[Amaxes]] | None = None) -> None:
        """Put what was noted into the histories; `merge` makes it that of all processes.

        Of processes that share their amaxes, one that evaluates by itself waits with that for the
        next training call: they would not have the same scales any more. Steps that other
        processes have not had yet wait as well.
        """
        if merge is None and self.is_shared and not torch.is_grad_enabled():
            return
        found = self.unshared
        merged = found if merge is None else merge(found)
        if merge is not None or found:
            self.is_shared = merge is not None
        for amaxes in merged:
            self.enter(amaxes)
        self.unshared = self.unshared[len(merged) :]

    def forget(self) -> None:
        """Steps without delayed scales have gone by: what is known is of another time."""
        self.known, self.unshared = {}, []

    def enter(self, amaxes: Amaxes) -> None:
        """Put the amaxes of one step in front of the histories."""
        for name, amax in amaxes.items():
            if 0 < amax < math.inf:
                history = [amax, *self.known.get(name, [])]
                self.known[name] = history[: self.lengths.get(name)]

    def scale_of(self, name: str, operand: Operand) -> float:
        """The scale that the history gives to the true values; 0 where there is none yet.

        With amaxes 3 and 7 in an E4M3FN operand: 7 / 448 = 2**-6 by "max", 3 / 448 by
        "most_recent" if 3 is the later one.
        """
        history, scale = self.known.get(name), operand.scale
        if not history or not isinstance(scale, Delayed) or operand.format is None:
            return 0.0
        amax = max(history) if scale.reduce == "max" else history[0]
        return float(amax / operand.format.max * 2.0**scale.margin)  # type: ignore[union-attr]

    def state(self) -> dict[str, list[float]]:
        """The histories as JSON has them; the steps that are not shared yet are not in it."""
        return {name: list(history) for name, history in self.known.items()}

    def pending(self) -> list[dict[str, list[Any]]]:
        """The steps that are in no history yet, of this process alone: amax and length by name."""
        return [{n: [amax, self.lengths[n]] for n, amax in step.items()} for step in self.unshared]

    def load(self, state: Mapping[str, Any], pending: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take over a state that `check` has passed."""
        self.known = {name: [float(x) for x in history] for name, history in state.items()}
        self.lengths |= {name: pair[1] for step in pending for name, pair in step.items()}
        self.unshared = [{name: float(pair[0]) for name, pair in step.items()} for step in pending]

    def check(
        self, state: Any, *, step: int, pending: Any = (), was_delayed: bool | None = None
    ) -> None:
        """Refuse what is no state, or what the recipe cannot go on with.

        Args:
            step: training steps that it is of.
            pending: as `pending` returned them.
            was_delayed: whether the recipe of the state has histories; None of a file that does
                not say.

        Raises:
            ValueError: says what is wrong.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"units: 'amaxes' is {state!r}; expected an object with lists")
        for name, history in state.items():
            if not isinstance(history, list | tuple) or not all(map(is_amax, history)):
                raise ValueError(
                    f"units: the amaxes of {name!r} are {str(history)[:60]}; expected a list of "
                    "positive numbers below 2^128"
                )
        fits = isinstance(pending, list | tuple) and all(
            isinstance(step, Mapping)
            and all(isinstance(pair, list) and len(pair) == 2 for pair in step.values())
            and all(is_number(amax) and is_length(length) for amax, length in step.values())
            for step in pending
        )
        if not fits:
            raise ValueError(
                f"units: 'pending_amaxes' is {str(pending)[:60]}; expected a list of steps, each "
                "with an amax and the length of its history by name"
            )
        if self.needed and step and not state and not pending and not was_delayed:
            raise ValueError(
                f"units: {step} training steps and no amaxes of them, of which the recipe makes "
                "its scales; the state is of another recipe, start anew or go on with that one"
            )


def is_number(x: Any) -> bool:
    """Whether a value is a number, or NaN or infinite."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def is_amax(x: Any) -> bool:
    """Whether a value is the amax of a tensor that is not zero, in float32."""
    return is_number(x) and 0 < x < 2.0**128


def is_length(x: Any) -> bool:
    """Whether a value is the length of a history."""
    return isinstance(x, int) and not isinstance(x, bool) and x >= 1
