"""Train the same model plainly and scaled, and compare every bit."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unitscale.units import rows, unit_scale
from unitscale.units.forward import session_of


class TwoLayers(nn.Module):
    """[..., 8] to a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).square().mean()


class Trace(NamedTuple):
    """What a run of some steps did: losses, gradients of every step, parameters and buffers."""

    losses: list[Tensor]
    gradients: list[dict[str, Tensor]]
    state: dict[str, Tensor]


def train(model: nn.Module, batches: Sequence[tuple[Any, ...]]) -> Trace:
    """SGD on a model that returns its loss; dropout is the same in every run."""
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses, gradients = [], []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        losses.append(loss.detach())
        grads = ((name, p.grad) for name, p in model.named_parameters())
        gradients.append({name: grad.clone() for name, grad in grads if grad is not None})
        optimizer.step()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return Trace(losses, gradients, state)


def assert_same_trace(got: Trace, want: Trace) -> None:
    """Every loss, gradient, parameter and buffer is equal to the bit (NaN equals NaN)."""
    torch.testing.assert_close(got.losses, want.losses, rtol=0, atol=0, equal_nan=True)
    for a, b in zip(got.gradients, want.gradients, strict=True):
        assert a.keys() == b.keys()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert got.state.keys() == want.state.keys()
    torch.testing.assert_close(got.state, want.state, rtol=0, atol=0, equal_nan=True)


def assert_trains_as_plain(
    make: Callable[[], nn.Module],
    *batches: tuple[Any, ...],
    steps: int = 3,
    least_units: int = 1,
    plain: str | None = "eager",
    **options: Any,
) -> nn.Module:
    """A scaled model trains as the plain one compiled by `plain`, or not at all, bit for bit.

    The first step measures, the others run the rewritten graph. At least `least_units` tensors must
    have a unit, so that a model that was not captured cannot pass. Returns the scaled model.
    """
    runs = []
    schedule = [batches[i % len(batches)] for i in range(steps * len(batches))]
    for scale in (False, True):
        torch.manual_seed(3)
        model = make()
        if scale:
            unit_scale(model, "fp32-units", **{"inner": "eager", "remeasure": "once"} | options)
        elif plain is not None:
            model.compile(backend=plain)
        runs.append(train(model, schedule))
        torch._dynamo.reset()
    assert_same_trace(runs[1], runs[0])
    held = [row for row in rows(model) if (row.s, row.phi) != (1.0, 1.0) and row.op != "parameter"]
    assert len(held) >= least_units, "too few tensors have a unit"
    return model


def ops(model: nn.Module) -> set[str]:
    """The names of the functions that the graphs of a scaled model call."""
    return {
        getattr(node.target, "__name__", "")
        for executable in session_of(model).executables
        for node in executable.module.graph.nodes
    }


def assert_written_out(model: nn.Module, op: str) -> None:
    """No graph of a scaled model calls `op` any more."""
    assert op not in ops(model)


class CountingInner:
    """An inner compiler that runs a graph as it is, and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return module.forward


def named(model: nn.Module) -> dict[str, Any]:
    """The rows of a scaled model by name."""
    return {row.name: row for row in rows(model)}
