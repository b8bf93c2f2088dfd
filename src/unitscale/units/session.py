"""A scaled model's session: the torch.compile backend that its graphs come to, and its units."""

import copy
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import fx, nn

from unitscale.graph.capture import BOUNDARY, TensorNode
from unitscale.graph.engine import in_backward
from unitscale.graph.place import Places
from unitscale.recipes import Recipe
from unitscale.units.assign import ONE, Unit, reason
from unitscale.units.call import Terms
from unitscale.units.executable import Executable
from unitscale.units.ops import INSIDE, is_inside_scaled_op
from unitscale.units.placing import NOTHING, Beside
from unitscale.units.products import Multiplied, multiplied
from unitscale.units.reading import Reading
from unitscale.units.replicas import agree, groups_of
from unitscale.units.row import UnitRow
from unitscale.units.schedule import Remeasure
from unitscale.units.store import UnitStore

__all__ = ["Session"]


class Session:
    """A torch.compile backend that runs graphs under a recipe, at units if `scale`.

    Args:
        recipe: how the operands of products are rounded.
        scale: hold every tensor at its unit.
        remeasure: when to measure, see `schedule.is_due`.
        inner: the torch.compile backend that gets the rewritten graph; "auto": see `Terms`.
        factor_dtype: dtype of the vector of factors.
        model: what is compiled, if that is known: its submodules tell graphs apart.
        store: units to go on with.
        beside: what was asked for beside the recipe, which has it already.

    Attributes:
        plain: modules, by path, that ran without a graph of the session, and why.
        reasons: why torch.compile gave up on something in calls since the last warning.
        breaks: the same of all calls: code between two graphs is not seen.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        scale: bool,
        remeasure: Remeasure = "geometric",
        inner: str | Callable[..., Any] = "auto",
        factor_dtype: torch.dtype = torch.float32,
        model: nn.Module | None = None,
        store: UnitStore | None = None,
        beside: Beside = NOTHING,
    ) -> None:
        if recipe.throughout is not None:
            raise ValueError(
                f"recipe {recipe.name!r} rounds every tensor of a run, and only those of products "
                "can be rounded here; use it in `unitscale train`, `compare` or `sweep`, or take "
                "'fp16-none' or 'fp16'"
            )
        self.beside = beside
        self.store = store or UnitStore(scale=scale, remeasure=remeasure)
        self.store.amaxes.needed = recipe.is_delayed
        self.rules_checked = self.holding_checked = False
        self.store.label = f"{recipe.name}: "
        self.recipe, self.scale, self.inner = recipe, scale, inner
        self.terms = Terms(recipe, self.store, inner=inner, model=model, factor_dtype=factor_dtype)
        self.given: weakref.WeakSet[Given] = weakref.WeakSet()
        weakref.finalize(self, forget, self.given)
        this = weakref.ref(self)
        self.terms.agree = lambda is_ahead: agree_of(this(), is_ahead=is_ahead)
        self.executables: list[Executable] = []
        self.covered: set[int] = set()
        self.plain: dict[str, str] = {}
        self.plain_macs: dict[str, int] = {}
        self.unwarned: list[str] = []
        self.reasons: dict[str, None] = {}
        self.breaks: dict[str, None] = {}
        self.aside_in: Counter[int] = Counter()
        self.lacking = f"recipe {recipe.name!r} is not in force in"

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Executable:
        """The torch.compile backend: one captured graph in, a callable out."""
        executable = Executable(self.terms, module, example_inputs)
        # The same tensors captured again, by another compilation, take the place of the old ones.
        key = signature(executable)
        kept = [other for other in self.executables if signature(other) != key]
        self.executables = [*kept, executable]
        return executable

    def backend(self) -> Callable[..., Any]:
        """This session as a backend that does not keep it alive: torch keeps backends for ever."""
        return Backend(weakref.ref(self))

    @property
    def model(self) -> nn.Module | None:
        """The model, as long as it lives."""
        return self.terms.places.model()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context in which the model runs as the plain one, in this thread."""
        thread = get_ident()
        self.aside_in[thread] += 1
        try:
            yield
        finally:
            self.aside_in[thread] -= 1
            if not self.aside_in[thread]:
                del self.aside_in[thread]

    @property
    def suspended(self) -> bool:
        """Whether the model runs as the plain one now.

        A backward pass may compute a checkpoint again in a thread of autograd's own: there it does
        if it does in any thread.
        """
        aside = self.aside_in
        return bool(aside) and (get_ident() in aside or in_backward())

    def agree(self, *, is_ahead: bool) -> bool:
        """Before a training call: exchange with data-parallel copies what was measured.

        Args:
            is_ahead: they have exchanged for this call already, and it failed here.
        Returns:
            Whether there are such copies, so that each process has to take part.
        """
        model = self.model
        if model is None or not torch.is_grad_enabled():
            return False
        if not (self.scale or self.store.amaxes.needed):
            return False
        groups = groups_of(model)
        if groups and not is_ahead:
            agree(self.store, groups)
        return bool(groups)

    def take(self, model: nn.Module) -> None:
        """Go on with a shallow copy of the model, if that is gone."""
        if self.model is None:
            self.terms.places = Places(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session | None":
        """A session for a copy of the model, with the same recipe, units and schedule."""
        model = self.model
        if model is None or id(model) not in memo:
            return None
        return self.copied_for(memo[id(model)], memo)

    def copied_for(self, model: nn.Module, memo: dict[int, Any]) -> "Session":
        """The session of a copy of the model, or of a shallow copy of it: one for each."""
        known = memo.get(id(self))
        if isinstance(known, Session) and known.model is model:
            return known
        self.terms.collect()
        copied = memo[id(self)] = Session(
            self.recipe,
            scale=self.scale,
            inner=self.inner,
            model=model,
            store=copy.deepcopy(self.store, memo),
            beside=self.beside,
        )
        return copied

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A pickle of the model is a plain model; `forward.ScaledForward` warns of it."""
        return type(None), ()

    def leave_plain(self, path: str, why: str, macs: int) -> None:
        """Note a module that ran without a graph of the session, and its multiply-adds."""
        if path not in self.plain:
            self.plain[path], self.plain_macs[path] = why, macs
            self.unwarned.append(path)

    def leave_beside(self, parameter: int, path: str, why: str, macs: int, grad: Any) -> None:
        """A hook: note a module whose parameter gets a gradient, if no graph has it by now."""
        if parameter not in self.covered:
            self.leave_plain(path, why, macs)

    def warn_of_plain(self, name: str) -> None:
        """Warn of the modules noted since the last warning, and why torch.compile gave up."""
        if not self.unwarned:
            return
        found = "; ".join(
            f"{path or 'the model itself'} ({self.plain[path]})" for path in self.unwarned
        )
        self.unwarned.clear()
        reasons, self.reasons = list(dict.fromkeys(map(shorten, self.reasons)))[:2], {}
        because = f" torch.compile says: {' | '.join(reasons)}" if reasons else ""
        warnings.warn(
            f"{name}: {self.lacking} {found}.{because}",
            stacklevel=4,
        )

    def warn_of_nothing_held(self, name: str) -> None:
        """Warn, once a graph has trained, that nothing between products is held as `saved` says."""
        programs = [
            program
            for executable in self.executables
            if executable.training
            for program in executable.programs.values()
        ]
        if self.holding_checked or self.recipe.saved is None or not programs:
            return
        self.holding_checked = True
        if not any(program.holds for program in programs):
            warnings.warn(
                f"{name}: recipe {self.recipe.name!r} is to hold inputs of norms and element-wise "
                f"functions for backward in {self.recipe.saved}, and this model has none that are "
                "known: nothing but operands of products is held in few bits; "
                "`with us.saved_tensors(model)` lists what is held, and why.",
                stacklevel=4,
            )

    def held(self) -> int:
        """How many tensors have a unit: measured, or carried over, loaded or given.

        Before anything has run, of units that were given by weights the weights alone are known.
        """
        if not self.scale:
            return 0
        if not self.executables:
            return len(self.store.units.keys() | self.store.given.keys())
        return sum(row.reason is None for row in self.rows())

    def line(self) -> str:
        """The recipe and how far it holds, in one line."""
        out = f", not in {len(self.plain)} modules" if self.plain else ""
        units = f", {self.held()} units" if self.scale else ""
        return f"(recipe): {self.recipe.name}{units}{out}"

    def tensors(self) -> Iterator[tuple[str, TensorNode, Executable, str]]:
        """Every tensor of every graph that ran, with its full name, its graph and its place."""
        for executable in self.executables:
            for prefix in executable.places:
                for tensor in executable.tensors.values():
                    yield prefix + tensor.name, tensor, executable, prefix

    def rows(self) -> list[UnitRow]:
        """One row per tensor of every graph, in order of first appearance."""
        self.terms.collect()
        rows: dict[str, UnitRow] = {}
        operands = self.operands()
        for name, tensor, executable, prefix in self.tensors():
            if name not in rows:
                program = executable.places[prefix].program
                gemm = program.rounded.get(tensor.node)
                product = multiplied(tensor.node, self.recipe, gemm, prefix=prefix)
                rows[name] = self.row(name, tensor, product, is_operand=name in operands)
        return list(rows.values())

    def operands(self) -> set[str]:
        """The names of what some rounded product takes."""
        return {
            prefix + executable.tensors[node].name
            for executable in self.executables
            for prefix, place in executable.places.items()
            for node in place.program.watch.operands
        }

    def row(
        self, name: str, tensor: TensorNode, product: Multiplied | None, *, is_operand: bool
    ) -> UnitRow:
        """The row of one tensor."""
        store = self.store
        reading = store.readings.get(name, Reading())
        held = tensor.pinned in (None, BOUNDARY)
        unit = store.units.get(name, ONE)
        if not held:  # a product that is rounded takes its gradient at its phi all the same
            takes = product is not None and product.why is None and tensor.keeps_true_gradient
            unit = Unit(0, unit.phi) if takes else ONE
        inside = INSIDE if is_inside_scaled_op(tensor.node) and not self.scale else None
        pinned = tensor.pinned
        if pinned == BOUNDARY and is_operand and unit != ONE and self.scale:
            pinned = None  # outside of the graph it has its true value; its products take it at s
        # What was zero at the last measuring step keeps the unit of the one before.
        kept = reading.rms == 0 and unit.s != 0, reading.grad_rms == 0 and unit.phi != 0
        rms, grad_rms = (
            None if keeps else number
            for keeps, number in zip(kept, (reading.rms, reading.grad_rms), strict=True)
        )
        why = pinned or inside or reason(rms, grad_rms, reading.amax, limit=reading.limit)
        if reading.rms is None and not (name in store.units and self.scale):
            why = why or "value not measured yet"
        return UnitRow.of(name, tensor.op, unit, reading, why, product)


def agree_of(session: Session | None, *, is_ahead: bool) -> bool:
    """`Session.agree`, which terms know of without keeping the session alive."""
    return session is not None and session.agree(is_ahead=is_ahead)


class Given:
    """A graph as Dynamo gets it, which keeps it for ever: it is empty once its session is gone.

    Dynamo's wrapper copies the `__dict__` of what it wraps, so this has none.
    """

    __slots__ = ("__weakref__", "executable")

    def __init__(self, executable: Executable) -> None:
        self.executable: Executable | None = executable

    def __call__(self, *args: Any) -> Any:
        """Run the graph."""
        assert self.executable is not None, "the model of this graph is gone"
        return self.executable(*args)


def forget(given: Iterable[Given]) -> None:
    """Let go of the graphs of a session that is gone."""
    for graph in given:
        graph.executable = None


class Backend:
    """A torch.compile backend for a session that may be gone."""

    def __init__(self, session: Callable[[], Session | None]) -> None:
        self.session = session

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The session's own call; a graph for a model that was dropped runs as it is."""
        session = self.session()
        if session is None:
            return module.forward
        given = Given(session(module, example_inputs))
        session.given.add(given)
        return given


def shorten(reason: str) -> str:
    """The first line of one of torch's explanations."""
    return reason.strip().splitlines()[0][:120]


def signature(executable: Executable) -> tuple[Any, ...]:
    """What two captures of the same code have in common."""
    tensors = executable.tensors.values()
    names = tuple((t.name, t.op, t.pinned) for t in tensors)
    return (executable.training, executable.first_prefix, names)
