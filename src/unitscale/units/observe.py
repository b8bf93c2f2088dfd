"""Run a measuring step: the rewritten graph node by node, shown to observers as it is computed.

A measuring step is a step of the recipe: every operand is rounded at the unit in force. Where a
tensor has no unit yet, it is set from the tensor itself before anything uses it, as here:

    forward   y = x w^T with s(x) = 1/8 and s(w) = 1/4, held as x / s(x) and w / s(w). The product
              of the two is y * 32. Its RMS is read, say 20, so that of y is 20 / 32 = 0.625 and
              s(y) = 1/2 (round(log2 0.625) = -1). Then y is held as y / s(y): the product times
              s(x) s(w) / s(y) = 1/16.
    backward  Two ops send gradients to y. The first that arrives chooses a provisional phi for
              both, so that they can be summed; once they are, `y`'s own hook reads the RMS of the
              sum, sets phi(y) for good and multiplies by what is missing.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import checkpoint

from unitscale.formats.batched import is_batched
from unitscale.gemm import rounded
from unitscale.graph.capture import TensorNode, checkpointed
from unitscale.graph.engine import modes_set_aside
from unitscale.graph.recompute import checkpoint_options
from unitscale.numerics import survey
from unitscale.units.assign import Monomial, Unit, assign
from unitscale.units.hold import hold, measured_hold, number, times
from unitscale.units.measurement import Watch
from unitscale.units.rewrite import DEFINES, FACTOR, FACTORS, SHOWS, SUM, Shown
from unitscale.units.watching import At, observed

__all__ = ["CallReader", "MeasuringStep", "Reader", "UnitsInForce"]


class UnitsInForce:
    """The units at which one measuring step runs: those that are known, and those it sets itself.

    Args:
        known: units by the names that the graph has for its tensors.
        without_phi: those of them whose gradient was never measured.
        sets: whether tensors without a unit get one; else they are held at (1, 1).
        zero: halves of them, ("s" or "phi", name), that were set of nothing but zeros: they are set
            anew where units are set.
        fused: groups of names that share one s. They are parameters: all of a graph have their s
            before the first op runs.
    """

    def __init__(
        self,
        known: Mapping[str, Unit],
        without_phi: Iterable[str],
        watch: Watch,
        *,
        sets: bool,
        zero: Collection[tuple[str, str]] = (),
        fused: Iterable[frozenset[str]] = (),
    ) -> None:
        self.watch, self.sets, self.fused = watch, sets, tuple(fused)
        blank = zero if sets else ()
        missing = set(without_phi) | {name for half, name in blank if half == "phi"}
        self.s = {n: unit.s for n, unit in known.items() if ("s", n) not in blank}
        self.phi = {n: unit.phi for n, unit in known.items() if n not in missing}
        self.provisional: dict[str, int] = {}
        self.vector: Tensor | None = None  # of the step: its slots hold scales of earlier steps

    def get(self, half: str, name: str) -> int | None:
        """The exponent of one half of a unit; None if it is not set."""
        found = (self.s if half == "s" else self.phi).get(name)
        if found is None and not self.sets:
            return 0
        if found is None and half == "phi":
            return self.provisional.get(name)
        return found

    def log2(self, monomial: Monomial, *, but: str | None = None) -> int:
        """The exponent of a factor, with 0 for what is not set and for the s named `but`."""
        return sum(
            power * (self.get(half, name) or 0)
            for (half, name), power in monomial.powers.items()
            if (half, name) != ("s", but)
        )

    def unset(self, monomial: Monomial, half: str) -> list[str]:
        """The symbols of a factor that are not set yet."""
        return [n for h, n in monomial.powers if h == half and self.get(h, n) is None]

    def set_s(self, name: str, value: Tensor, log2: int) -> None:
        """Set s of a tensor that is `value * 2**log2`."""
        with torch.no_grad(), modes_set_aside():
            found = survey(value.detach(), format=None)
        limits, true = self.watch.limits_of(name), 2.0**log2
        self.s[name] = assign(
            found.rms * true, None, found.amax * true, limit=limits.limit, ceiling=limits.ceiling
        ).s
        for group in self.fused:
            if name in group:
                known = group & self.s.keys()
                self.s |= dict.fromkeys(known, max(self.s[other] for other in known))

    def phi_of(self, name: str, grad: Tensor, log2: int) -> int:
        """The phi of a gradient that is `grad * 2**log2`."""
        with torch.no_grad(), modes_set_aside():
            found = survey(grad.detach().to_dense(), format=None)
        limits, true = self.watch.limits_of(name), 2.0**log2
        return assign(
            None,
            found.rms * true,
            limit=limits.limit,
            grad_amax=found.amax * true,
            grad_ceiling=limits.grad_ceiling,
        ).phi

    def own_phi(self, name: str, grad: Tensor) -> int:
        """The phi at which a product takes the gradient of its result, which is true until then."""
        if self.get("phi", name) is None:
            self.phi[name] = 0 if is_batched(grad) else self.phi_of(name, grad, 0)
        return self.get("phi", name) or 0

    def backward_factor(self, monomial: Monomial) -> Callable[[Tensor], float]:
        """The factor on a gradient, to be asked for when that is there."""
        return BackwardFactor(self, monomial)

    def settle(self, name: str, grad: Tensor) -> Tensor | None:
        """Set phi of a tensor whose gradients are summed; the gradient at it, if that moves it."""
        before = self.provisional.pop(name, 0)
        self.phi[name] = before if is_batched(grad) else self.phi_of(name, grad, -before)
        shift = self.phi[name] - before
        return None if shift == 0 else grad * number(2.0**shift, grad).to(grad.dtype)


# What runs in a backward pass is hidden from Dynamo, which looks at every frame where the pass is
# started by a function that it compiles.
IN_BACKWARD = torch.compiler.disable(reason="a measuring step of unitscale")


@dataclass(eq=False)
class BackwardFactor:
    """The factor on a gradient: a number, once the gradient is there."""

    units: UnitsInForce
    monomial: Monomial

    @IN_BACKWARD
    def __call__(self, grad: Tensor) -> float:
        units = self.units
        for name in units.unset(self.monomial, "phi"):
            # The first gradient of several that are summed: all of them get this phi.
            guess = 0 if is_batched(grad) else units.phi_of(name, grad, units.log2(self.monomial))
            units.provisional[name] = guess
        return 2.0 ** units.log2(self.monomial)


class Reader(Protocol):
    """What reads the tensors of a measuring step."""

    def read(self, tensor: TensorNode, held: Tensor, log2: int, operand_log2: int | None) -> None:
        """Take a value, which is `held * 2**log2`; a product takes it at `2**operand_log2`."""

    def read_gradient(self, tensor: TensorNode, carried: Tensor, log2: int) -> None:
        """Take a gradient, which is carried as `2**log2` times the true one."""


@runtime_checkable
class CallReader(Protocol):
    """A reader that takes the arguments of the ops as well, a mask say, which are no tensors."""

    def read_call(self, args: Any, kwargs: Any) -> None:
        """Take the arguments of the op that was run last; its result, held, is read after it."""


@dataclass(eq=False)
class Settling:
    """A hook on a tensor: settles phi when its gradient is whole, and shows it as it is carried."""

    shown: Shown
    units: UnitsInForce
    readers: Sequence[Reader]

    @IN_BACKWARD
    def __call__(self, grad: Tensor | None) -> Tensor | None:
        """The gradient multiplied by what its phi lacked; None leaves it as it is."""
        if grad is None:
            return None  # a backward written by hand may return it
        settled, units, tensor = None, self.units, self.shown.tensor
        for half, name in self.shown.phi.powers:
            if half == "phi" and units.sets and name not in units.phi:
                settled = units.settle(name, grad)
        carried, log2 = grad if settled is None else settled, units.log2(self.shown.phi)
        if tensor.keeps_true_gradient and tensor.node in units.watch.outputs:
            log2 = units.own_phi(tensor.name, grad)
            carried = times(grad, number(2.0**log2, grad))  # as the product takes it
        for reader in () if is_batched(carried) else self.readers:
            reader.read_gradient(tensor, carried, log2)
        return settled


def listen(value: Tensor, hook: Settling) -> None:
    """Register a hook that ends with the autograd graph of its step.

    A parameter outlives that graph: its hook knows the readers by weak references only, and is
    taken away with the first of them.
    """
    if not value.is_leaf:
        value.register_hook(hook)
        return
    weak = [weakref.ref(reader) for reader in hook.readers]
    handle = value.register_hook(OnLeaf(hook.shown, hook.units, weak))
    weakref.finalize(hook.readers[0], handle.remove)


@dataclass(eq=False)
class OnLeaf:
    """`Settling` on a leaf, for as long as the readers of its step are there."""

    shown: Shown
    units: UnitsInForce
    readers: Sequence[weakref.ref[Reader]]

    @IN_BACKWARD
    def __call__(self, grad: Tensor | None) -> Tensor | None:
        """As `Settling`."""
        alive = [reader for ref in self.readers if (reader := ref()) is not None]
        return Settling(self.shown, self.units, alive)(grad) if alive else None


class Deferred:
    """An operand of a sum whose own unit is not known yet, with its factors."""

    def __init__(self, value: Tensor, fwd: Monomial, bwd: Monomial, *, exact: bool) -> None:
        self.value, self.fwd, self.bwd, self.exact = value, fwd, bwd, exact


class MeasuringStep(fx.Interpreter):
    """Runs a graph of `rewrite(..., is_measured=True)`.

    Args:
        units: those in force, shared by the graph and the bodies of its checkpoints.
        readers: get each tensor as it is held, and its gradient when that comes. None of them in a
            recomputation, which finds every unit set.
        at: is told which node runs.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        units: UnitsInForce,
        readers: Sequence[Reader],
        at: At | None = None,
    ) -> None:
        super().__init__(module)
        self.extra_traceback = False  # an error of the model's is not ours to explain
        self.units, self.readers, self.at = units, readers, at

    def run(self, *args: Any) -> Any:  # type: ignore[override]
        """Run the graph; nothing of it is kept, or hooks and results would keep each other."""
        try:
            return super().run(*args)
        finally:
            self.env.clear()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, with its factors as numbers, and show the tensor that it holds."""
        value = observed(self.at, n, self.env, self.compute)
        shown: Shown | None = n.meta.get(SHOWS)
        if self.readers and shown is not None and isinstance(value, Tensor):
            self.show(shown, value)
        return value

    def show(self, shown: Shown, value: Tensor) -> None:
        """Read a value now, and its gradient when it comes."""
        tensor, units = shown.tensor, self.units
        if not tensor.is_visible:
            return
        if tensor.node in units.watch.boundary and units.get("s", tensor.name) is None:
            units.set_s(tensor.name, value, 0)
        for reader in self.readers:
            reader.read(tensor, value, units.log2(shown.s), units.get("s", tensor.name))
        if value.requires_grad:
            listen(value, Settling(shown, units, self.readers))

    def compute(self, n: fx.Node) -> Any:
        """The value of a node."""
        if FACTOR in n.meta:
            return n.meta[FACTOR]
        if n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target is hold:
            return self.held(n, args[0], *n.meta[FACTORS], exact=args[3])
        if SUM in n.meta:
            args, kwargs = self.operands_of_sum(n, args, kwargs)
        body = checkpointed(n)
        if body is not None:
            return self.checkpointed(body, args, kwargs)
        return self.call(n, args, kwargs)

    def call(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        """The op of a node on these arguments; a factor among them becomes a scalar tensor."""
        given = list(leaves((args, kwargs)))
        if any(isinstance(x, Monomial) for x in given):
            device = next((x.device for x in given if isinstance(x, Tensor)), None)

            def convert(x: Any) -> Any:
                if not isinstance(x, Monomial):
                    return x
                exponent = self.exponent(n, x)
                return torch.tensor(2.0**exponent, dtype=torch.float32, device=device)

            args, kwargs = (fx.node.map_aggregate(a, convert) for a in (args, kwargs))
        for reader in self.readers if n.target is not rounded else ():
            if isinstance(reader, CallReader):
                reader.read_call(args, kwargs)
        return getattr(self, n.op)(n.target, args, kwargs)

    def exponent(self, n: fx.Node, monomial: Monomial, *, but: str | None = None) -> int:
        """The exponent of a factor going forward; what is not set yet of it is set now."""
        for name in self.units.unset(monomial, "s"):
            if name != but:
                self.look_up(n, name)
        return self.units.log2(monomial, but=but)

    def look_up(self, n: fx.Node, name: str) -> None:
        """Set s of a tensor that was computed without: one that is written to in place, say."""
        for other in n.graph.nodes:
            shown: Shown | None = other.meta.get(SHOWS)
            if shown is not None and shown.tensor.name == name and other in self.env:
                self.units.set_s(name, self.env[other], self.units.log2(shown.s))
                return
        self.units.s[name] = 0

    def held(self, n: fx.Node, x: Tensor, fwd: Monomial, bwd: Monomial, *, exact: bool) -> Any:
        """The result of a `hold`; before a sum whose unit is not known, what it will be made of."""
        if SUM in n.meta and self.units.get("s", n.meta[SUM]) is None:
            return Deferred(x, fwd, bwd, exact=exact)
        name = n.meta.get(DEFINES)
        if name is not None and self.units.get("s", name) is None:
            self.units.set_s(name, x, self.exponent(n, fwd, but=name))
        factor = None if fwd.is_one else 2.0 ** self.exponent(n, fwd)
        return measured_hold(x, factor, self.units.backward_factor(bwd), exact=exact)

    def operands_of_sum(self, n: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The operands of a sum divided by the unit of the sum, which is set first if it is not.

        The sum is computed twice then: once, without a gradient, at the largest unit of its
        operands, to be measured.
        """
        name = n.meta[SUM]
        waiting = [x for x in leaves((args, kwargs)) if isinstance(x, Deferred)]
        if waiting:
            exponents = {x: self.exponent(n, x.fwd, but=name) for x in waiting}
            largest = max(exponents.values())

            def at_largest(x: Any) -> Any:
                if not isinstance(x, Deferred):
                    return x
                return times(x.value, number(2.0 ** (exponents[x] - largest), x.value))

            with torch.no_grad(), modes_set_aside():
                trial = self.call(
                    n, *(fx.node.map_aggregate(a, at_largest) for a in (args, kwargs))
                )
                self.units.set_s(name, trial, largest)
        # The last operand first, as in the rewritten graph: autograd sums in this order.
        made = {
            x: measured_hold(
                x.value,
                2.0 ** self.units.log2(x.fwd),
                self.units.backward_factor(x.bwd),
                exact=x.exact,
            )
            for x in reversed(waiting)
        }
        make = lambda x: made[x] if isinstance(x, Deferred) else x
        return fx.node.map_aggregate(args, make), fx.node.map_aggregate(kwargs, make)

    def checkpointed(self, body: fx.GraphModule, args: Any, kwargs: Any) -> Any:
        """Run the body of a checkpoint; it runs again in backward, without being read again."""
        runs = 0

        def run(*inputs: Any) -> Any:
            nonlocal runs
            runs += 1
            readers = self.readers if runs == 1 else ()
            return MeasuringStep(body, self.units, readers).run(*inputs)

        return checkpoint(run, *args[1:], **checkpoint_options(body, kwargs))


def leaves(arguments: Any) -> list[Any]:
    """Everything among the arguments of a call that is no list, tuple or dict."""
    found: list[Any] = []
    fx.node.map_aggregate(arguments, found.append)
    return found
