"""What the graphs of one model share: the terms they run under, and one call of the model."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.graph.engine import in_backward
from unitscale.graph.place import Places, argument_names
from unitscale.recipes import Recipe, Rule
from unitscale.units.amax import DelayedRun
from unitscale.units.measurement import Measurement
from unitscale.units.observe import Reader, UnitsInForce
from unitscale.units.store import UnitStore
from unitscale.units.watching import At

__all__ = ["Call", "Terms"]

REMEMBERED = 256
"""Graph calls whose recomputation in a backward pass can be told from a new call."""

Observer = Callable[[str], Reader]
"""From what the names of a graph's tensors lack to something that reads them."""


GraphRun = tuple[Hashable, Any]
"""A graph and place, and how it ran: the units of a measuring step, or a vector of factors."""


@dataclass(kw_only=True)
class Call:
    """One call of a model.

    Args:
        number: counts the calls.
        is_due: whether its training graphs measure.
        is_replay: a checkpoint around the model computes an earlier call again, in backward.
        trained: whether a graph with gradients ran.
        measured: whether a training graph was measured.
        graphs: how many graphs ran.
        parameters: identities of the parameters that they were given.
        measuring: the units and readings of graphs that are measured, by graph and place.
        graph_runs: how its graphs ran that a checkpoint may compute again, in order.
        following: of a replay, how the graphs to come ran in the call that it computes again.
    """

    number: int
    is_due: bool
    is_replay: bool
    trained: bool = False
    measured: bool = False
    graphs: int = 0
    parameters: set[int] = field(default_factory=set)
    measuring: dict[Hashable, tuple[UnitsInForce, Measurement]] = field(default_factory=dict)
    graph_runs: list[GraphRun] = field(default_factory=list)
    following: list[GraphRun] = field(default_factory=list)


class Terms:
    """What every graph of one model runs under, and what the graphs tell the model's session.

    Args:
        recipe: how the operands of products are rounded.
        store: units, and the schedule.
        inner: the torch.compile backend that gets a rewritten graph; "auto" is inductor on an
            accelerator, and eager on a CPU, where compiling takes longer than it saves at first.
        model: what is captured, if that is known: its submodules tell graphs apart.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: UnitStore,
        *,
        inner: str | Callable[..., Any],
        model: nn.Module | None,
        factor_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.recipe, self.store, self.inner = recipe, store, inner
        self.factor_dtype = factor_dtype
        self.places, self.arguments = Places(model), argument_names(model)
        # Goes on from a store of an earlier session: of two measurements the later call counts.
        self.calls = max(store.adopted_at.values(), default=0)
        self.call: Call | None = None
        self.observer: Observer | None = None
        self.at: At | None = None  # told where each graph is, while somebody watches
        self.arrived: list[Measurement] = []
        self.arrived_amaxes: dict[DelayedRun, Tensor] = {}
        self.begun: dict[DelayedRun, None] = {}
        self.warned_of_lost = False
        self.used_rules: set[Rule | None] = set()
        self.used_skips: set[str] = set()
        self.remembered: OrderedDict[Hashable, Any] = OrderedDict()
        self.inside_graph = False
        self.measured = False  # in the last call, a training graph
        self.agree: Callable[[bool], bool] = lambda is_ahead: False
        self.is_ahead = False

    def inner_for(self, device: torch.device | None) -> str | Callable[..., Any]:
        """The inner compiler for a graph on a device."""
        if self.inner != "auto":
            return self.inner
        return "eager" if device is None or device.type == "cpu" else "inductor"

    @contextmanager
    def calling(self) -> Iterator[Call]:
        """One call of the model: takes over what is measured by now, and counts training calls.

        A call within another one, of a part of the model, belongs to that. One that fails counts as
        none: where other processes expect one more of this one, it is the next.
        """
        if self.call is not None:
            yield self.call
            return
        is_replay, is_shared = in_backward(), False
        if not is_replay:
            self.collect()
            self.wake()
            is_shared = self.agree(self.is_ahead)
            self.store.amaxes.settle()
        self.calls += 1
        is_due = self.store.is_due()
        call = self.call = Call(number=self.calls, is_due=is_due, is_replay=is_replay)
        try:
            yield call
        except BaseException:
            self.is_ahead |= is_shared
            raise
        else:
            self.is_ahead &= not is_shared
            if call.trained:
                if call.measured:
                    self.store.looked = self.store.step
                self.store.step += 1
                if not self.store.amaxes.needed:
                    self.store.amaxes.forget()
                self.store.requested = self.store.requested and not call.is_due
        finally:
            self.call = None
            self.measured = call.measured

    def wake(self) -> None:
        """Have the next training call measure if what was zero because of a parameter is no longer.

        The matrix B of LoRA, say: it is zero until the first step of its optimizer, and so is the
        gradient of A. Whenever that step comes (after some micro-batches, or a rate of zero), units
        are set before either is rounded.
        """
        store = self.store
        if store.zero and store.asleep and not store.woken:
            store.wake(self.places.changed(store.asleep))
        store.requested |= store.woken

    def note_amaxes(self, run: DelayedRun, grad: Tensor) -> None:
        """A hook: the gradient of a vector with slots begins with the amaxes of a step.

        Of two backward passes through one run each operand has the larger amax.
        """
        run.arrived = True
        # A copy: what autograd hands out it may add to afterwards.
        amaxes = grad.detach()[: len(run.slots)].clone()
        earlier = self.arrived_amaxes.get(run)
        self.arrived_amaxes[run] = amaxes if earlier is None else torch.maximum(amaxes, earlier)

    def note_backward(self, run: DelayedRun, grad: Tensor) -> None:
        """A hook on a result of a run with slots: its backward pass has begun."""
        self.begun[run] = None

    def warn_of_lost_amaxes(self) -> None:
        """Say once that a backward pass brought no amaxes: it was asked for some tensors alone."""
        lost = any(not run.arrived for run in self.begun)
        self.begun.clear()
        if lost and not self.warned_of_lost:
            self.warned_of_lost = True
            warnings.warn(
                f"recipe {self.recipe.name!r} makes its scales of the amaxes of earlier steps, and "
                "a backward pass brought none: torch.autograd.grad and backward(inputs=...) leave "
                "them out. The scales stay those of the steps before (of the tensor itself, if "
                "there are none); call loss.backward() to have them.",
                stacklevel=4,
            )

    def collect(self) -> None:
        """Take over the measuring steps whose backward pass came, in the order of their calls.

        And the amaxes of steps with delayed scales.
        """
        amaxes, self.arrived_amaxes = self.arrived_amaxes, {}
        for run, values in amaxes.items():
            self.store.amaxes.note(run.slots, run.true(values.tolist()))
        self.warn_of_lost_amaxes()
        arrived = sorted(self.arrived, key=lambda m: m.call)
        self.arrived.clear()  # the list stays: a step whose backward pass is still to come holds it
        for found in arrived:
            self.store.adopt(
                found.full_readings, training=True, broken=found.broken_by, call=found.call
            )

    def remember(self, runs: list[GraphRun], key: Hashable, inputs: Hashable, how: Any) -> None:
        """Note how a graph ran on some inputs, should a backward pass compute it again."""
        runs.append((key, how))
        self.remembered[key, inputs] = (runs, len(runs) - 1)
        self.remembered.move_to_end((key, inputs))
        while len(self.remembered) > REMEMBERED:
            self.remembered.popitem(last=False)
