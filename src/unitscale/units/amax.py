"""`AmaxHistory`: amaxes of earlier steps, of which delayed scales are made."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from unitscale.recipes import Delayed, Operand

__all__ = ["AmaxHistory"]

Amaxes = dict[str, float]


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
        self.unshared: list[tuple[list[tuple[str, Operand]], Amaxes]] = []

    def note(self, slots: list[tuple[str, Operand]], amaxes: Iterable[float]) -> None:
        """Remember the amaxes of one step; 0 is that of an operand whose product did not run.

        One that is not finite is not kept: the scale stays, and the next step has another try.
        """
        self.unshared.append((slots, dict(zip((n for n, _ in slots), amaxes, strict=True))))

    def settle(self, merge: Callable[[list[Amaxes]], list[Amaxes]] | None = None) -> None:
        """Put what was noted into the histories; `merge` makes it that of all processes.

        Of processes that share their amaxes, one that evaluates by itself waits with that for the
        next training call: they would not have the same scales any more. Steps that other
        processes have not had yet wait as well.
        """
        if merge is None and self.is_shared and not torch.is_grad_enabled():
            return
        found = [amaxes for _, amaxes in self.unshared]
        merged = found if merge is None else merge(found)
        if merge is not None or found:
            self.is_shared = merge is not None
        for (slots, _), amaxes in zip(self.unshared, merged, strict=False):
            self.enter(slots, amaxes)
        self.unshared = self.unshared[len(merged) :]

    def enter(self, slots: list[tuple[str, Operand]], amaxes: Amaxes) -> None:
        """Put the amaxes of one step into the histories."""
        for name, operand in slots:
            if isinstance(operand.scale, Delayed):
                self.add(name, amaxes[name], operand.scale.history)

    def add(self, name: str, amax: float, length: int) -> None:
        """Put one amax in front of a history of some length."""
        if 0 < amax < math.inf:
            self.known[name] = [amax, *self.known.get(name, [])][:length]

    def scale_of(self, name: str, operand: Operand) -> float:
        """The scale that the history gives to an operand; 0 where there is none yet.

        With amaxes 3 and 7 in an E4M3FN operand: 7 / 448 = 2**-6 by "max", 3 / 448 by
        "most_recent" if 3 is the later one.
        """
        history, scale = self.known.get(name), operand.scale
        if not history or not isinstance(scale, Delayed) or operand.format is None:
            return 0.0
        amax = max(history) if scale.reduce == "max" else history[0]
        return float(amax / operand.format.max * 2.0**scale.margin)  # type: ignore[union-attr]

    def state(self) -> dict[str, list[float]]:
        """As JSON has it; the steps that are not shared yet are in it as this process had them."""
        whole = AmaxHistory()
        whole.known = {name: list(history) for name, history in self.known.items()}
        for slots, amaxes in self.unshared:
            whole.enter(slots, amaxes)
        return whole.known

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `check` has passed."""
        self.known = {name: list(history) for name, history in state.items()}
        self.unshared = []

    def check(self, state: Any, *, step: int) -> None:
        """Refuse what is no state, or what the recipe cannot go on with.

        Raises:
            ValueError: says what is wrong.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"units: 'amaxes' is {state!r}; expected an object with lists")
        for name, history in state.items():
            fits = isinstance(history, list | tuple) and all(
                isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf
                for x in history
            )
            if not fits:
                raise ValueError(
                    f"units: the amaxes of {name!r} are {str(history)[:60]}; expected a list of "
                    "positive numbers"
                )
        if self.needed and step and not state:
            raise ValueError(
                f"units: {step} training steps and no amaxes of them, of which the recipe makes "
                "its scales; the state is of another recipe, start anew or go on with that one"
            )
