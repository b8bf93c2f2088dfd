"""Where in a model a captured graph runs: its argument names, and the submodule it belongs to.

After a graph break within a layer Dynamo captures the layer's own frame, and runs that one graph
for every layer of the class. The graph does not know for which; the parameters it is given tell.
"""

import inspect
import weakref
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

import torch
from torch import fx, nn

from unitscale.graph.name import input_name, is_parameter

__all__ = ["Places", "alias_patterns", "argument_names", "parameter_slots"]

Slot = tuple[int, str]
"""Position of a parameter among a graph's inputs, and its name as the graph has it."""


def argument_names(model: nn.Module | None) -> tuple[str, ...]:
    """The names of the arguments that a model takes by position; none of no model."""
    if model is None:
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = inspect.signature(model.forward).parameters.values()
    return tuple(argument.name for argument in taken if argument.kind in positional)


def parameter_slots(graph: fx.Graph) -> list[Slot]:
    """The parameters among the inputs of a graph."""
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    return [(i, input_name(node)) for i, node in enumerate(inputs) if is_parameter(node)]


def alias_patterns(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns for the other paths of the modules that some patterns match.

    A module that is registered twice has one path in `named_modules`, and a graph may reach it by
    the other. A pattern that matches it by one of its paths is to hold by all of them.
    """
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    found: dict[str, None] = {}
    for aliases in paths.values():
        matched = {path for path in aliases for p in patterns if fnmatchcase(path, p)}
        others = [path for path in aliases if path not in matched] if matched else []
        found |= dict.fromkeys(map(escape, others))
    return tuple(found)


WRAPPERS = {"self", "_modules", "_orig_mod", "_fsdp_wrapped_module", "module"}
"""Parts of a name that say how a module was reached, and not which it is."""


def plain(name: str) -> str:
    """The name of a parameter without the wrappers that it is reached through."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


class Places:
    """Finds the submodule that a call of a captured graph belongs to.

    Args:
        model: the whole model, to which no reference is kept alive; None finds nothing.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model: Callable[[], nn.Module | None]
        self.model = weakref.ref(model) if model is not None else lambda: None
        self.names: dict[int, list[str]] = {}

    def prefix(self, slots: Sequence[Slot], inputs: Sequence[Any]) -> str:
        """What the names of a graph's tensors lack, such as "layers.1."; "" for the whole model.

        Tensors that are no parameter of the model (a functional call's, say) tell nothing: "".
        """
        if not any(id(inputs[i]) in self.names for i, _ in slots[:1]):
            self.look()
        for position, local in slots:
            names = self.names.get(id(inputs[position]), [])
            prefixes = [name.removesuffix(local) for name in names if name.endswith(local)]
            found = [prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")]
            if found:
                return min(found, key=len)
        return ""

    def changed(self, zeros: Collection[str]) -> set[str]:
        """Which of some parameters that were zero, by the names of their tensors, are no longer.

        Of a parameter that is shared out, this process asks for its own shard alone.
        """
        model = self.model()
        if model is None or not zeros:
            return set()
        known = {plain(name): x for name, x in model.named_parameters(remove_duplicate=False)}
        found = {name: x for name in zeros if (x := known.get(plain(name))) is not None}
        own = {name: getattr(x, "to_local", lambda x=x: x)() for name, x in found.items()}
        asked = {name: x.detach().any() for name, x in own.items() if not x.is_meta}
        by_device: dict[torch.device, list[str]] = {}
        for name, x in asked.items():
            by_device.setdefault(x.device, []).append(name)
        # One wait for each device.
        answers = {
            device: torch.stack([asked[name] for name in names]).tolist()
            for device, names in by_device.items()
        }
        return {
            name
            for device, names in by_device.items()
            for name, is_any in zip(names, answers[device], strict=True)
            if is_any
        }

    def look(self) -> None:
        """Note the parameters that the model has now: a wrapper may have replaced them."""
        model = self.model()
        self.names = {}
        for name, x in model.named_parameters(remove_duplicate=False) if model is not None else ():
            self.names.setdefault(id(x), []).append(name)
