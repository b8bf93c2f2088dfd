"""Models whose control flow is the difficulty: loops, exits, recursion, parts run apart."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from coverage_torch import WIDTH, vectors
from torch import Tensor, nn
from zoo_entry import CLASSES, Entry


class Model(nn.Module):
    """A body [BATCH, LENGTH, WIDTH] -> [BATCH, WIDTH] of each class below, and the loss."""

    body: Callable[..., Tensor]  # of each class that has no forward of its own

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        """The loss."""
        return F.cross_entropy(self.readout(self.body(x)), y)


def linear() -> nn.Linear:
    """A square linear layer."""
    return nn.Linear(WIDTH, WIDTH)


class Experts(Model):
    """Two of four experts for each token, picked in a loop with nonzero and index_add_."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Sequential(linear(), nn.GELU(), linear()) for _ in range(4))

    def body(self, x: Tensor) -> Tensor:
        """Every token goes to its experts."""
        tokens = x.flatten(0, 1)
        weights, picked = self.router(tokens).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            token, slot = (picked == i).nonzero(as_tuple=True)
            if token.numel() == 0:
                continue
            out.index_add_(0, token, expert(tokens[token]) * weights[token, slot, None])
        return out.view_as(x).mean(1)


class EarlyExit(Model):
    """Layers until the state's mean is above a level, read by `.item()`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear() for _ in range(4))

    def body(self, x: Tensor) -> Tensor:
        """As many layers as it takes."""
        for layer in self.layers:
            x = x + F.relu(layer(x))
            if x.mean().item() > 0.4:
                break
        return x.mean(1)


class Recursion(Model):
    """A tree: one layer that joins the two halves of a sequence, down to single vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.join = nn.Linear(2 * WIDTH, WIDTH)

    def body(self, x: Tensor) -> Tensor:
        """The root of the tree."""
        if x.shape[1] == 1:
            return x[:, 0]
        half = x.shape[1] // 2
        both = torch.cat([self.body(x[:, :half]), self.body(x[:, half:])], dim=1)
        return torch.tanh(self.join(both))


class Frozen(Model):
    """The first of two layers does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear().requires_grad_(False), linear()

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.second(F.gelu(self.first(x))).mean(1)


class WithoutGradients(Frozen):
    """The first layer runs under no_grad, as a teacher does."""

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        with torch.no_grad():
            x = F.gelu(self.first(x))
        return self.second(x).mean(1)


class DecoratedWithoutGradients(Frozen):
    """A method under the decorator no_grad."""

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """The first layer."""
        return F.gelu(self.first(x))

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.second(self.features(x)).mean(1)


class Ignored(Frozen):
    """A method that Dynamo is told not to look into (torch.compiler.disable)."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(True)

    @torch.compiler.disable
    def features(self, x: Tensor) -> Tensor:
        """The first layer, and a product that no module owns."""
        return F.gelu(self.first(x))

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.second(self.features(x)).mean(1)


class IgnoredProduct(Ignored):
    """A product by a raw parameter in a method that Dynamo does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    @torch.compiler.disable
    def features(self, x: Tensor) -> Tensor:
        """The first layer, and a product that no module owns."""
        return F.gelu(self.first(x)) @ self.matrix


class JitIgnored(Ignored):
    """A method marked for TorchScript to ignore."""

    @torch.jit.ignore
    def features(self, x: Tensor) -> Tensor:
        """The first layer."""
        return F.gelu(self.first(x))


class Checkpointed(Frozen):
    """torch.utils.checkpoint around a layer."""

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        x.requires_grad_()
        state = torch.utils.checkpoint.checkpoint(
            lambda z: F.gelu(self.first(z)), x, use_reentrant=False
        )
        return self.second(state).mean(1)


class Counting(Frozen):
    """Changes an attribute in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        self.calls += 1
        return self.second(F.gelu(self.first(x))).mean(1)


class Printing(Frozen):
    """Calls into Python between the layers: a graph break."""

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        state = F.gelu(self.first(x))
        str(id(state)).encode().decode()
        print(end="")
        return self.second(state).mean(1)


class Recurrence(Model):
    """A linear recurrence written as a loop of cells, and a set of states as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gate = nn.GRUCell(WIDTH, WIDTH), linear()

    def body(self, x: Tensor) -> Tensor:
        """The mean of the states."""
        state, states = torch.zeros_like(x[:, 0]), []
        for vector in x.unbind(1):
            state = self.cell(vector, state)
            states.append(state * self.gate(vector).sigmoid())
        return torch.stack(states).mean(0)


class Registered(Model):
    """Modules in a plain Python list that the model also registers one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [linear() for _ in range(2)]
        for i, layer in enumerate(self.hidden):
            self.add_module(f"hidden{i}", layer)

    def body(self, x: Tensor) -> Tensor:
        """All layers."""
        for layer in self.hidden:
            x = F.gelu(layer(x))
        return x.mean(1)


class Generator(Registered):
    """Layers through a Python generator."""

    def body(self, x: Tensor) -> Tensor:
        """All layers."""

        def states(state: Tensor) -> Any:
            for layer in self.hidden:
                state = F.gelu(layer(state))
                yield state

        return torch.stack(list(states(x))).mean(dim=(0, 2))


def entry(name: str, build: Callable[[], nn.Module], batch: Any = vectors, **others: Any) -> Entry:
    """An entry of this page."""
    return Entry(name=name, family="code", build=build, batch=batch, **others)


FLOW = [
    entry("experts in a loop (nonzero, index_add)", Experts),
    entry("early exit on .item()", EarlyExit),
    entry("recursion over a tree", Recursion),
    entry("frozen layer", Frozen),
    entry("a part under no_grad", WithoutGradients),
    entry("a method decorated with no_grad", DecoratedWithoutGradients),
    entry("torch.compiler.disable on a method", Ignored),
    entry("a raw product under torch.compiler.disable", IgnoredProduct),
    entry("torch.jit.ignore on a method", JitIgnored),
    entry("checkpoint within", Checkpointed),
    entry("attribute that counts calls", Counting),
    entry("print between layers", Printing),
    entry("loop of nn.GRUCell", Recurrence),
    entry("layers in a Python list", Registered),
    entry("layers in a generator", Generator),
]
