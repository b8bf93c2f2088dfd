"""Everything a scaled model must remember between its calls, in one object that is saved whole.

It knows names and numbers, no graphs: graphs read their units from it, and a new one knows what
earlier ones measured.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from unitscale.units.amax import AmaxHistory
from unitscale.units.assign import ONE, Unit, assign, gives_scale, is_rounding_error
from unitscale.units.reading import Reading, as_numbers, readings_of
from unitscale.units.schedule import Remeasure, check_schedule, is_due, never_measures
from unitscale.units.state import STATE_VERSION, check_state

__all__ = ["UnitStore"]

ATTEMPTS = 16
"""Calls that were read after which what is zero still is left to the schedule."""

Signature = tuple[bool, tuple[str, ...], tuple[str, ...]]
"""Whether a graph is one of the whole model rather than of a submodule, its parameters, and the
names of its tensors outside of every (further) submodule."""


class UnitStore:
    """Units by tensor name, what was read of the tensors, and where the schedule stands.

    Args:
        scale: whether tensors get units at all; else they are only measured.
        remeasure: when to measure, see `schedule.is_due`.

    Attributes:
        units: replaced, never changed in place, when a measurement is adopted; so whoever holds it
            has the units of one moment.
        version: counts those replacements.
        step: where the schedule stands: training calls so far, over all graphs of the model.
        began: where it stood before the first call of a model that others' units were carried to.
        without_phi: tensors whose value was measured and whose gradient was not (evaluation).
        evaluated: tensors that only graphs of evaluation have. Their units are dropped whenever
            training measures, and set again by the next evaluation.
        zero: halves of units, ("s" or "phi", name), of what the recipe rounds that was never seen
            other than exactly zero: a matrix of zeros that training starts from, say, and the
            gradients before it. They say nothing of its size, so the next measuring step sets them
            before it rounds.
        asleep: parameters that were exactly zero when they were measured last. The first call that
            finds one of them changed is a measuring step, if there are `zero` halves: what was zero
            because of it is so no longer.
        changed: those of them that have; training calls measure until nothing is `zero`: a forward
            pass may have no backward pass, meet a NaN, or not reach what has changed.
        attempts: such calls whose readings have come; of so many at most, for other tensors may
            stay zero.
        stale: tensors whose s an evaluation sets anew, once, because of that.
        looked: where the schedule stood at the last measuring step; None: not known.
        requested: whether the next training call measures, whatever the schedule.
        amaxes: those of earlier steps, where a recipe makes scales of them.
        has_replicas: whether other processes take part: then a saved state says what was measured
            since the last exchange.
        fused: groups of parameters, by name, that share one s: the largest of theirs.
        given: by the name of a weight, log2 of the units that its product takes the weight and its
            input at, in graphs still to come: those of an export, which names no tensors.
    """

    def __init__(self, *, scale: bool, remeasure: Remeasure = "geometric") -> None:
        check_schedule(remeasure)  # refuses an unknown word now, not at the first step
        self.scale, self.remeasure = scale, remeasure
        self.units: dict[str, Unit] = {}
        self.without_phi: frozenset[str] = frozenset()
        self.evaluated: frozenset[str] = frozenset()
        self.zero: frozenset[tuple[str, str]] = frozenset()
        self.asleep: frozenset[str] = frozenset()
        self.changed: frozenset[str] = frozenset()
        self.attempts: frozenset[int] = frozenset()
        self.stale: frozenset[str] = frozenset()
        self.looked: int | None = None
        self.signatures: dict[Signature, int] = {}
        self.step, self.began, self.version, self.requested = 0, 0, 0, False
        self.parameters: set[str] = set()
        self.readings: dict[str, Reading] = {}
        self.adopted_at: dict[str, int] = {}
        self.unshared: dict[str, Reading] = {}
        self.warned: set[tuple[str, str]] = set()
        self.amaxes = AmaxHistory()
        self.has_replicas = False
        self.fused: tuple[frozenset[str], ...] = ()
        self.given: Mapping[str, tuple[int, int]] = {}
        self.label = ""  # how a warning begins

    @property
    def sets_units(self) -> bool:
        """Whether a tensor without a unit gets one when it is computed."""
        return self.scale and not never_measures(self.remeasure)

    @property
    def woken(self) -> bool:
        """Whether a parameter that was zero is so no longer, and no step has measured it yet."""
        return bool(self.changed)

    def wake(self, changed: Collection[str]) -> None:
        """Have what was zero because of some parameters measured: they have changed."""
        if changed:
            self.changed, self.attempts = frozenset(changed), frozenset()
            self.stale = frozenset(name for half, name in self.zero if half == "s")
            self.version += 1  # an evaluation looks again at which units it lacks

    @property
    def ran_without(self) -> bool:
        """Whether training calls since the last measuring step may have lacked a `zero` half."""
        return not self.woken and self.looked is not None and self.step > self.looked + 1

    def is_due(self) -> bool:
        """Whether the training call that is about to run measures, by the schedule or a request."""
        return self.requested or is_due(self.step, self.remeasure)

    def lacks(self, name: str, *, phi: bool) -> bool:
        """Whether a tensor has no unit yet; with `phi`, whether that of its gradient is missing."""
        known = name in self.units and (phi or name not in self.stale)
        return not known or (phi and name in self.without_phi)

    def index_of(self, signature: Signature) -> int:
        """The number of a graph by its parameters and the tensors outside of every submodule.

        Two graphs of the same parameters, one of which computes what the other begins with, are a
        forward pass with and without its loss: they share a number, and so the names of tensors.
        Graphs of the whole model are counted together; those of submodules by their parameters.
        """
        is_whole, parameters, names = signature
        beside = {
            other: index
            for other, index in self.signatures.items()
            if other[0] == is_whole and (is_whole or other[1] == parameters)
        }
        for (_, others, known), index in beside.items():
            length = min(len(known), len(names)) if parameters else max(len(known), len(names))
            if others == parameters and known[:length] == names[:length]:
                return self.signatures.setdefault(signature, index)
        return self.signatures.setdefault(signature, 1 + max(beside.values(), default=-1))

    def adopt(
        self,
        readings: Mapping[str, Reading],
        *,
        training: bool,
        broken: str | None = None,
        call: int = 0,
    ) -> None:
        """Keep the readings of one measuring step, and set units by them.

        Those of a training step replace units; those of an evaluation set what is missing. What
        gives no scale, because it is zero or never came, leaves the unit that is known. A step that
        is `broken` by a NaN is not kept: what has no unit is measured again. Of two steps the later
        counts, whichever backward pass came first.
        """
        if broken is not None:
            stays = "The earlier units stay." if self.units else "The next step measures again."
            warnings.warn(
                f"units were not measured: {broken} holds NaN; look at the step's inputs, "
                f"and for an overflow in the step before. {stays}",
                stacklevel=2,
            )
            return
        if training:
            readings = {n: r for n, r in readings.items() if self.adopted_at.get(n, -1) <= call}
            self.adopted_at |= dict.fromkeys(readings, call)
            dropped = self.evaluated - readings.keys()
            self.units = {n: unit for n, unit in self.units.items() if n not in dropped}
            self.evaluated = frozenset()
            self.unshared |= readings
        else:
            known = self.units.keys() - self.stale
            readings = {n: r for n, r in readings.items() if n not in known}
            self.evaluated |= readings.keys() - self.units.keys()
        self.stale -= readings.keys()
        if self.readings or not self.scale:
            self.warn_of_losses(readings)
        self.assign(readings, training=training)
        if training and self.changed:
            self.attempts |= {call}
            if not self.zero or len(self.attempts) == ATTEMPTS:
                self.asleep, self.changed = self.asleep - self.changed, frozenset()

    def assign(self, readings: Mapping[str, Reading], *, training: bool) -> None:
        """Set the units of some tensors by what was read of them."""
        self.readings |= readings
        if not self.scale:
            return
        parameters = self.parameters & self.readings.keys()
        grads = {name: self.readings[name].grad_rms for name in parameters}
        largest = max((rms for rms in grads.values() if rms is not None), default=0.0)
        before, found = self.units.keys(), {}
        for name, r in readings.items():
            noise = is_rounding_error(grads.get(name), largest)
            measured = assign(
                r.rms,
                None if noise else r.grad_rms,
                r.amax,
                limit=r.limit,
                grad_amax=r.grad_amax,
                ceiling=r.ceiling,
                grad_ceiling=r.grad_ceiling,
            )
            # A batch whose loss is masked, or that does not reach an expert, says nothing of the
            # gradients to come: at 1 they would be flushed until the next measuring step.
            known = self.units.get(name, ONE)
            found[name] = Unit(
                measured.s if gives_scale(r.rms, r.amax) else known.s,
                measured.phi if gives_scale(r.grad_rms) else known.phi,
            )
        self.units = self.units | found
        self.units = self.units | self.shared(found.keys())
        scaled = {("s", n) for n, r in readings.items() if gives_scale(r.rms, r.amax)}
        scaled |= {("phi", n) for n, r in readings.items() if gives_scale(r.grad_rms)}
        unseen = {("s", n) for n in readings if n not in before}
        unseen |= {("phi", n) for n in readings if n not in before or n in self.without_phi}
        self.zero = (self.zero - scaled) | (zero_halves(readings) & unseen)
        awake = {n for n, r in readings.items() if r.rms is not None}
        self.asleep = (self.asleep - awake) | {
            n for n in awake & self.parameters if readings[n].rms == 0
        }
        self.without_phi = (
            self.without_phi - found.keys()
            if training
            else self.without_phi | (found.keys() - before)
        )
        self.version += 1

    def forget_zeros(self) -> None:
        """Look at every zero anew: another recipe rounds other tensors than the one before."""
        zero = {("s", n) for n, r in self.readings.items() if r.rms == 0}
        zero |= {("phi", n) for n, r in self.readings.items() if r.grad_rms == 0}
        is_one = {(half, n) for half, n in zero if getattr(self.units.get(n, ONE), half) == 0}
        self.zero = self.zero | is_one

    def join(self, groups: tuple[frozenset[str], ...]) -> None:
        """Have the parameters of each group share one s from now on."""
        self.fused = groups
        if found := self.shared(self.units.keys()):
            self.units = self.units | found
            self.version += 1

    def shared(self, names: Collection[str]) -> dict[str, Unit]:
        """The units of the fused groups that some tensors are in: all at the largest s.

        It is that of the last readings, where there are any, so that it can become smaller again.
        """
        found: dict[str, Unit] = {}
        for group in self.fused:
            if group.isdisjoint(names):
                continue
            own = {name: self.units[name] for name in group if name in self.units}
            read = {name: self.readings.get(name, Reading()) for name in own}
            s = max(
                unit.s
                if (r := read[name]).rms is None
                else assign(r.rms, None, r.amax, limit=r.limit, ceiling=r.ceiling).s
                for name, unit in own.items()
            )
            found |= {name: replace(unit, s=s) for name, unit in own.items()}
        return found

    def share(self, exchange: Callable[[dict[str, Reading]], dict[str, Reading]]) -> None:
        """Replace what was measured since the last exchange by what all processes measured."""
        self.assign(exchange(self.unshared), training=True)
        self.unshared = {}

    def warn_of_losses(self, readings: Mapping[str, Reading]) -> None:
        """Say once of which tensors the recipe's formats lose values, or gradients, at their units.

        A run that never measures again loses the same at every step to come.
        """
        remedy = (
            "It is measured anew by now; if this comes often, measure more often "
            '(remeasure="drift"), or keep its module in full precision (skip=).'
            if self.scale
            else "Nothing follows it: us.unit_scale(model, recipe) gives it a unit, and skip= "
            "keeps its module in full precision."
        )
        for name, reading in readings.items():
            for half, loss in reading.losses.items():
                if (name, half) not in self.warned:
                    self.warned.add((name, half))
                    warnings.warn(
                        f"{self.label}of the {half} of {name!r} {loss}, at the scale in force "
                        f"until this step. {remedy}",
                        stacklevel=2,
                    )

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs, as JSON has it."""
        return {
            "version": STATE_VERSION,
            "step": self.step,
            **({"began": self.began} if self.began else {}),
            "requested": self.requested,
            "graphs": [
                [index, is_whole, list(parameters), list(names)]
                for (is_whole, parameters, names), index in self.signatures.items()
            ],
            "units": {name: asdict(unit) for name, unit in self.units.items()},
            "without_phi": sorted(self.without_phi),
            "evaluated": sorted(self.evaluated),
            **({"zero": sorted(map(list, self.zero))} if self.zero else {}),
            **({"asleep": sorted(asleep)} if (asleep := self.asleep | self.changed) else {}),
            "unshared": as_numbers(self.unshared) if self.has_replicas else {},
            "delayed": self.amaxes.needed,
            "amaxes": self.amaxes.state(),
            "pending_amaxes": self.amaxes.pending(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`, whole.

        Raises:
            ValueError: it is not one; nothing was changed.
        """
        check_state(state)
        amaxes = state.get("amaxes", {})
        if state["version"] == 3 and amaxes and state["units"]:
            raise ValueError(
                "units: the amaxes of version 3 are of values as they were held, at units that the "
                "file does not tell; train on from a state without them"
            )
        pending = state.get("pending_amaxes", [])
        self.amaxes.check(
            amaxes, step=state["step"], pending=pending, was_delayed=state.get("delayed")
        )
        unshared = readings_of(state.get("unshared", {}))
        self.amaxes.load(amaxes, pending)
        self.units = {name: Unit(**unit) for name, unit in state["units"].items()}
        self.without_phi = frozenset(state["without_phi"])
        self.evaluated = frozenset(state["evaluated"])
        self.zero = frozenset((half, name) for half, name in state.get("zero", ()))
        self.asleep, self.looked = frozenset(state.get("asleep", ())), None
        self.signatures = {
            (is_whole, tuple(parameters), tuple(names)): index
            for index, is_whole, parameters, names in state["graphs"]
        }
        self.step, self.requested = state["step"], state["requested"]
        self.began = state.get("began", 0)
        self.readings = {name: Reading() for name in self.units}
        self.adopted_at, self.unshared = {}, unshared
        self.version += 1
        self.join(self.fused)


def zero_halves(readings: Mapping[str, Reading]) -> set[tuple[str, str]]:
    """The halves of units of what is rounded that was exactly zero.

    What is rounded has a limit on what its unit may leave it; a bias, say, has none.
    """
    s = {("s", n) for n, r in readings.items() if r.rms == 0 and r.ceiling is not None}
    return s | {
        ("phi", n) for n, r in readings.items() if r.grad_rms == 0 and r.grad_ceiling is not None
    }
