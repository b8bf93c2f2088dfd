"""The rule of the design, on random graphs: whatever the units are, the function is the same.

One capture serves all: the plain model is the captured graph itself.
"""

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from units.random_graph import OPS, SHAPE, RandomModel
from unitscale.recipes import parse
from unitscale.units.assign import FILL, Unit
from unitscale.units.executable import Executable
from unitscale.units.session import Session

SEEDS = range(16)


def capture(model: torch.nn.Module, x: Tensor) -> tuple[fx.GraphModule, Sequence[Any]]:
    """The whole model as one graph, and the graph's inputs."""
    found: list[tuple[fx.GraphModule, Sequence[Any]]] = []

    def keep(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append((module, inputs))
        return module.forward

    torch.compile(model, backend=keep, fullgraph=True)(x)
    return found[0]


def step(run: Callable[..., Any], inputs: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """Outputs of a graph and gradients of its inputs, in a dtype; dropout repeats."""
    leaves = [
        x.detach().to(dtype).requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]
    torch.manual_seed(1)
    loss, *others = run(*leaves)
    loss.backward()
    learned = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    zero = torch.zeros((), dtype=dtype)
    grads = [zero if x.grad is None else x.grad for x in learned]
    return [loss.detach(), *(x.detach() for x in others), *grads]


def executable(
    graph: tuple[fx.GraphModule, Sequence[Any]],
    dtype: torch.dtype,
    remeasure: Any = (),
    inner: Any = "eager",
) -> Executable:
    """The graph under a session of its own, whose factors are of some dtype."""
    session = Session(
        parse("fp32-units"), scale=True, remeasure=remeasure, inner=inner, factor_dtype=dtype
    )
    return session(*graph)


def set_units(target: Executable, draw: Callable[[], float]) -> None:
    """Give every tensor a random unit, parameters too, within what fill values allow."""
    store, found = target.terms.store, {}
    for name in (tensor.name for tensor in target.tensors.values()):
        s = draw()
        filled = (store.readings[name].amax or 0.0) >= FILL
        found[name] = Unit(max(s, 0.0) if filled else s, draw())
    store.units, store.version = found, store.version + 1


def as_it_is(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A compiler that compiles nothing: it gets the graph that has factors at products alone."""
    return module.forward


def measured(
    graph: tuple[fx.GraphModule, Sequence[Any]], dtype: torch.dtype, inner: Any = "eager"
) -> Executable:
    """An executable that has measured one step and runs the rewritten graph from now on."""
    target = executable(graph, dtype, remeasure=[0], inner=inner)
    step(target, graph[1], dtype)
    target.terms.collect()
    return target


@pytest.mark.parametrize("seed", SEEDS)
def test_units_change_nothing(seed):
    assert_units_change_nothing(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 500))
def test_units_change_nothing_in_many_graphs(seed):
    assert_units_change_nothing(seed)


def assert_units_change_nothing(seed: int) -> None:
    """In float64 to 1e-12 with any units; in float32 to the bit with powers of two."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    graph = capture(RandomModel(seed), x)
    draw = random.Random(seed)
    plain, exact = (step(graph[0], graph[1], t) for t in (torch.float32, torch.float64))

    measuring = executable(graph, torch.float32, remeasure=[0])
    assert_equal(step(measuring, graph[1], torch.float32), plain)
    measuring.terms.collect()
    assert_equal(step(measuring, graph[1], torch.float32), plain)  # at the units just measured

    set_units(measuring, lambda: draw.randint(-8, 8))
    assert_equal(step(measuring, graph[1], torch.float32), plain)

    for inner in ("eager", as_it_is):
        target = measured(graph, torch.float64, inner)
        set_units(target, lambda: draw.uniform(-8, 8))
        assert_close(step(target, graph[1], torch.float64), exact)


def assert_equal(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a, b), f"result {i} differs by {(a - b).abs().max():.1e}"


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    """To 1e-12 of the largest value; results are of order 1, some are sums that cancel."""
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        error = (a - b).abs().max() / b.abs().max().clamp(min=1.0)
        assert error <= 1e-12, f"result {i} is off by {error:.1e}"


@pytest.mark.parametrize("inner", ["eager", as_it_is])
def test_wrong_factor_is_seen(inner):
    """Any factor of a graph off by two: the test above fails."""
    x = torch.randn(SHAPE, requires_grad=True)
    graph = capture(RandomModel(3), x)
    plain = step(graph[0], graph[1], torch.float32)
    target = measured(graph, torch.float32, inner)
    (place,) = target.places.values()
    right, seen = place.vector, 0
    assert_equal(step(target, graph[1], torch.float32), plain)
    for i in range(len(right)):
        place.vector = right.clone()
        place.vector[i] *= 2
        with contextlib.suppress(AssertionError):
            assert_equal(step(target, graph[1], torch.float32), plain)
            continue
        seen += 1
    # The others scale a gradient that is zero, or a tensor that the results do not depend on.
    assert seen > 0.7 * len(right)


def test_graphs_hold_every_op():
    """The seeds above draw each op at least once."""
    drawn = [name for seed in SEEDS for name, _ in RandomModel(seed).program]
    assert set(drawn) == set(OPS)
