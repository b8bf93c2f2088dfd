"""Everything a scaled model must remember between its calls, in one object that is saved whole.

It knows names and numbers, no graphs: graphs read their units from it, and a new one knows what
earlier ones measured.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from unitscale.units.amax import AmaxHistory
from unitscale.units.assign import MAX_EXPONENT, Unit, assign, is_rounding_error
from unitscale.units.reading import Reading, as_numbers, readings_of
from unitscale.units.schedule import Remeasure, check_schedule, is_due, never_measures

__all__ = ["STATE_VERSION", "UnitStore", "check_state"]

STATE_VERSION = 4
"""Of `UnitStore.state_dict`. Version 1 counted steps per graph and had no version number. Those
after it are read still: version 2 knew no amaxes, version 3 not what was still to be shared."""

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
        zero: halves of units, ("s" or "phi", name), that were set of a tensor, or of a gradient,
            that was exactly zero: a matrix of zeros that training starts from, say. They say
            nothing of its size, so the next measuring step sets them again before it rounds.
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

    def is_due(self) -> bool:
        """Whether the training call that is about to run measures, by the schedule or a request."""
        return self.requested or is_due(self.step, self.remeasure)

    def lacks(self, name: str, *, phi: bool) -> bool:
        """Whether a tensor has no unit yet; with `phi`, whether that of its gradient is missing."""
        return name not in self.units or (phi and name in self.without_phi)

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

        Those of a training step replace units; those of an evaluation set what is missing. An
        operand of zeros that has a gradient is something else after the step, so the next training
        call measures, whatever the schedule; once, for it may stay what it is. A step
        that is `broken` by a NaN is not kept: what has no unit is measured again. Of two steps the
        later counts, whichever backward pass came first.
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
            self.requested |= any(
                name in self.parameters and r.rms == 0 and r.flushed is not None and r.grad_rms
                for name, r in readings.items()
                if ("s", name) not in self.zero
            )
        else:
            readings = {n: r for n, r in readings.items() if n not in self.units}
            self.evaluated |= readings.keys()
        if self.readings or not self.scale:
            self.warn_of_losses(readings)
        self.assign(readings, training=training)

    def assign(self, readings: Mapping[str, Reading], *, training: bool) -> None:
        """Set the units of some tensors by what was read of them."""
        self.readings |= readings
        if not self.scale:
            return
        known = self.parameters & self.readings.keys()
        grads = {name: self.readings[name].grad_rms for name in known}
        largest = max((rms for rms in grads.values() if rms is not None), default=0.0)
        found = {}
        for name, r in readings.items():
            noise = is_rounding_error(grads.get(name), largest)
            found[name] = assign(
                r.rms,
                None if noise else r.grad_rms,
                r.amax,
                limit=r.limit,
                grad_amax=r.grad_amax,
                ceiling=r.ceiling,
                grad_ceiling=r.grad_ceiling,
            )
        self.units = self.units | found
        self.units = self.units | self.shared(found.keys())
        read = {("s", n) for n in found} | {("phi", n) for n in found}
        self.zero = (self.zero - read) | zero_halves(readings)
        self.without_phi = (
            self.without_phi - found.keys() if training else self.without_phi | found.keys()
        )
        self.version += 1

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


def check_state(state: Any) -> None:
    """Refuse what is no state of a `UnitStore`.

    Raises:
        ValueError: another version, a missing key, another type, a unit out of range.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"units are a {type(state).__name__}; expected an object with their state")
    if state.get("version") not in (2, 3, STATE_VERSION):
        raise ValueError(
            f"units of version {state.get('version', 1)!r}; expected {STATE_VERSION}. Measure them "
            "again (leave the file out, and the first step does), or upgrade unitscale, if a newer "
            "one wrote them."
        )
    kinds = {
        "step": int,
        "requested": bool,
        "graphs": list,
        "units": dict,
        "without_phi": list,
        "evaluated": list,
    }
    if state["version"] >= 3:
        kinds["amaxes"] = dict
    if state["version"] >= 4:
        kinds |= {"unshared": dict, "delayed": bool, "pending_amaxes": list}
    for key, kind in kinds.items():
        value = state.get(key)
        if not isinstance(value, kind) or (kind is int and not is_count(value)):
            raise ValueError(f"units: {key!r} is {shortened(value)}; expected a {kind.__name__}")
    if not is_count(began := state.get("began", 0)) or began > state["step"]:
        raise ValueError(
            f"units: 'began' is {shortened(began)}; expected a whole number up to the step, "
            f"{state['step']}"
        )
    for name, unit in state["units"].items():
        check_unit(name, unit)
    for key in ("without_phi", "evaluated"):
        check_names(key, state[key], state["units"])
    halves = state.get("zero", [])
    if not isinstance(halves, list | tuple) or not all(map(is_half, halves)):
        raise ValueError(
            f"units: 'zero' is {shortened(halves)}; expected pairs of 's' or 'phi' and a name"
        )
    for entry in state["graphs"]:
        fits = isinstance(entry, list | tuple) and len(entry) == 4 and isinstance(entry[1], bool)
        if not fits or not is_count(entry[0]) or not all(map(is_names, entry[2:])):
            raise ValueError(
                f"units: a graph is {shortened(entry)}; expected a number, true or false, and two "
                "lists of names"
            )


def zero_halves(readings: Mapping[str, Reading]) -> set[tuple[str, str]]:
    """The halves of units that were set of nothing but zeros."""
    s = {("s", name) for name, reading in readings.items() if reading.rms == 0}
    return s | {("phi", name) for name, reading in readings.items() if reading.grad_rms == 0}


def check_unit(name: Any, unit: Any) -> None:
    """Refuse what is no unit: two exponents in range."""
    if not isinstance(unit, Mapping) or unit.keys() != {"s", "phi"}:
        raise ValueError(
            f"units: the unit of {name!r} is {shortened(unit)}; expected {{'s': ..., 'phi': ...}}"
        )
    for half, exponent in unit.items():
        is_whole = isinstance(exponent, int) and not isinstance(exponent, bool)
        if not is_whole or abs(exponent) > MAX_EXPONENT:
            raise ValueError(
                f"units: {half} of {name!r} is 2 to the power of {shortened(exponent)}; expected a "
                f"whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}"
            )


def check_names(key: str, names: Any, units: Collection[str]) -> None:
    """Refuse a list that names something else than tensors with a unit."""
    if not is_names(names):
        raise ValueError(f"units: {key!r} is {shortened(names)}; expected a list of names")
    if unknown := sorted(set(names) - set(units)):
        raise ValueError(f"units: {key!r} names {unknown[:3]}, which have no unit in the file")


def is_count(value: Any) -> bool:
    """Whether a value is 0, 1, 2, ..."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_names(value: Any) -> bool:
    """Whether a value is a list of strings."""
    return isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)


def is_half(value: Any) -> bool:
    """Whether a value is a half of a unit: "s" or "phi", and a name."""
    return is_names(value) and len(value) == 2 and value[0] in ("s", "phi")


def shortened(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
