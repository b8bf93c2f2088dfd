"""The names of a captured graph's nodes: the op, the module it runs in, the input it stands for."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx

from unitscale.graph import dynamo

__all__ = [
    "input_name",
    "is_parameter",
    "module_path",
    "note_paths",
    "op_name",
    "unused_name",
]

MODULE, INPUT, PARAMETER = "unitscale.module", "unitscale.input", "unitscale.parameter"
"""Under which keys `note_paths` leaves what it found on a node."""


def note_paths(
    graph: fx.Graph, arguments: Sequence[str] = (), roots: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Leave on each node its module's path and, on an input, its name; returns the graph's roots.

    It is to be called while Dynamo's backend runs: later Dynamo has dropped what inputs come from.
    What hangs on the only root, or on the model itself (`self`), has its qualified name in that
    module. In a frame with several modules the others keep the name of their variable in front.

    Args:
        arguments: the names of what the model takes by position, which the graph does not know.
        roots: those of the graph around this one, if it is the body of a checkpoint.
    """
    inputs = {n: dynamo.input_source(n) for n in graph.nodes if n.op == "placeholder"}
    found = (source.root for source in inputs.values() if source.root)
    roots = tuple(dict.fromkeys([*roots, *found]))
    for node, source in inputs.items():
        if dynamo.has_source(node) or INPUT not in node.meta:
            node.meta[INPUT] = ".".join(qualified(source, roots, arguments))
            node.meta[PARAMETER] = source.is_parameter
    for node in graph.nodes:
        node.meta[MODULE] = path_of(node, roots)
    return roots


def qualified(
    source: dynamo.InputSource, roots: tuple[str, ...] = (), arguments: Sequence[str] = ()
) -> tuple[str, ...]:
    """The parts of an input's name."""
    if source.root is not None:
        return (*prefix(source.root, roots), *source.path)
    first, *rest = source.path
    if source.is_keyword and rest:
        return tuple(rest)
    if source.is_argument and rest and rest[0].isdecimal() and int(rest[0]) < len(arguments):
        return (arguments[int(rest[0])], *rest[1:])
    return (first, *rest)


def prefix(root: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a root module itself: none of the only one."""
    if len(roots) <= 1 or root == "L['self']":
        return ()
    variable, names = dynamo.parse(root)
    return (*variable.removeprefix("L['").removeprefix("G['").split("']")[:1], *names)


def path_of(node: fx.Node, roots: tuple[str, ...]) -> str:
    """The path of the module that a node runs in."""
    root, names = dynamo.parse(dynamo.module_expression(node), roots)
    return ".".join((*(prefix(root, roots) if root in roots else ()), *names))


def module_path(node: fx.Node) -> str:
    """Qualified name of the innermost module whose forward made this node; empty at the root.

    As `named_modules` has it, whatever the names of modules are.
    """
    noted = node.meta.get(MODULE)
    return path_of(node, ()) if noted is None else str(noted)


def input_name(node: fx.Node) -> str:
    """Stable name of a graph input: a parameter's qualified name, or the argument's name."""
    noted = node.meta.get(INPUT)
    return ".".join(qualified(dynamo.input_source(node))) if noted is None else str(noted)


def is_parameter(node: fx.Node) -> bool:
    """Whether a placeholder stands for a parameter of the model."""
    if isinstance(dynamo.example(node), torch.nn.Parameter):
        return True
    noted = node.meta.get(PARAMETER)
    return dynamo.input_source(node).is_parameter if noted is None else bool(noted)


def op_name(node: fx.Node) -> str:
    """Name of the op of a node: `linear`, `add`, `view`; what it is for a node that is no op."""
    if node.op == "placeholder":
        return "parameter" if is_parameter(node) else "input"
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def unused_name(node: fx.Node, seen: Counter[str]) -> str:
    """Module path and op of a node, with a number from its second occurrence on."""
    stem = ".".join(filter(None, (module_path(node), op_name(node))))
    if node.op == "placeholder":
        stem = input_name(node)
    seen[stem] += 1
    return stem if seen[stem] == 1 else f"{stem}#{seen[stem] - 1}"
