"""What is read of torch that torch does not document: one function for each assumption.

Each docstring says what is assumed, and the versions on which it was seen to hold. Each assumption
has a test of its own in `tests/graph/test_dynamo.py`. Where one fails after an upgrade of torch,
its test says which, and this is the only file of the room to mend.
"""

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import torch
import torch._dynamo.source as sources
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = [
    "InputSource",
    "body_name",
    "calls_model_code",
    "checkpoint_context",
    "example",
    "gradient_mode",
    "gradients_by_step",
    "has_source",
    "input_source",
    "is_checkpoint",
    "is_number_input",
    "is_registered",
    "is_wrapper_subclass",
    "is_zero_tensor",
    "known_number",
    "module_expression",
    "parse",
    "running_fake",
    "set_example",
    "storage_id",
    "transform_depth",
    "writes",
]

CONTAINERS = ("_modules", "_parameters", "_buffers")
"""Where `nn.Module` keeps what it registers; such a step is no part of a qualified name."""


class InputSource(NamedTuple):
    """Where the value of a graph's input comes from.

    Args:
        root: Dynamo's expression of the module it hangs on, such as L['self']; None for an input
            that is no part of a module.
        path: the names that lead to it: from the module, or from the frame's argument.
        is_parameter: whether a module has it as a parameter.
        is_keyword: whether the path starts with the name of a `**kwargs`.
        is_argument: whether the path starts with the name of a `*args`.
    """

    root: str | None
    path: tuple[str, ...]
    is_parameter: bool = False
    is_keyword: bool = False
    is_argument: bool = False


def example(node: fx.Node) -> Any:
    """The value that Dynamo computed for a node with fake tensors, or None if it left none.

    Assumed: it is in `meta["example_value"]`: a fake tensor, a tuple or list of such, or for a
    Python number that may change a SymInt, SymFloat or SymBool. Seen on torch 2.11 to 2.13.
    """
    return node.meta.get("example_value")


def set_example(node: fx.Node, value: Any) -> None:
    """Leave a value where Dynamo would have left it; see `example`."""
    node.meta["example_value"] = value


def running_fake(like: Tensor) -> AbstractContextManager[Any]:
    """A context in which ops on fake tensors run as they did when Dynamo captured them.

    What autograd saves of them goes through no hooks: a checkpoint around the call would take it
    for what the call itself saves, and miss it when it computes the call again.

    Assumed: `like`, an example value, has a `fake_mode` that knows the sizes that may change,
    `enable_python_dispatcher` makes functions in C++ ask it for them, and Dynamo runs them under
    `_disable_saved_tensors_hooks_during_tracing`. Seen on torch 2.11 to 2.13, the last on 2.13.
    """
    fake: Any = like
    stack = ExitStack()
    stack.enter_context(_disable_saved_tensors_hooks_during_tracing())
    stack.enter_context(fake.fake_mode)
    stack.enter_context(enable_python_dispatcher())
    return stack


def storage_id(value: Tensor) -> int:
    """Identity of the memory behind a (fake) tensor; 0 for a tensor without storage of its own.

    Assumed: fake tensors share a storage object where real ones would share memory, and its
    `_cdata` is the object's address. Seen on torch 2.11 to 2.13.
    """
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # wrapper subclasses, functorch levels
        return 0


MAX_STEPS = 256
"""Steps of a backward pass that one op is searched for: those of torch take a few."""


def gradients_by_step(node: fx.Node, x: fx.Node) -> list[int]:
    """How many gradients of one tensor each step of the backward pass of one op computes.

    An op that torch composes of others, such as `F.normalize`, takes its input several times. Only
    steps that compute one are listed: none if none is found.
    Assumed: example values have a `grad_fn`, as real ones do, which leads over `next_functions` to
    that of the op's inputs. An op that replaced another has none that leads there. Seen on torch
    2.11 to 2.13.
    """
    inputs = {i: example(i) for i in node.all_input_nodes}
    ends: set[Any] = {v.grad_fn for v in inputs.values() if isinstance(v, Tensor)} - {None}
    value, result = inputs[x], example(node)
    parts = result if isinstance(result, tuple | list) else (result,)
    found: set[Any] = {v.grad_fn for v in parts if isinstance(v, Tensor)} - {None} - ends
    waiting, counts = list(found), []
    while waiting and len(found) < MAX_STEPS:
        count = 0
        for step, index in waiting.pop().next_functions:
            if step is None:
                continue
            is_leaf = getattr(step, "variable", None) is value
            count += is_leaf or (step is value.grad_fn and index == value.output_nr)
            if step not in found and step not in ends:
                found.add(step)
                waiting.append(step)
        counts.append(count)
    return [count for count in counts if count]


def writes(value: Tensor) -> int:
    """How often an op wrote to the memory of an example value; 0 for an inference tensor.

    Assumed: `_version` counts the writes to fake tensors too. Seen on torch 2.11 to 2.13.
    """
    return 0 if value.is_inference() else value._version


def is_wrapper_subclass(value: Tensor) -> bool:
    """Whether a tensor is a subclass that wraps others, such as DTensor.

    Assumed: `is_traceable_wrapper_subclass` answers for fake ones too. Seen on torch 2.11 to 2.13.
    """
    return is_traceable_wrapper_subclass(value)


def is_zero_tensor(value: Tensor) -> bool:
    """Whether a tensor stands for zeros without having memory for them.

    Assumed: `_is_zerotensor` says so, and `clone` of one makes ordinary zeros. Seen on torch 2.11
    to 2.13.
    """
    return value._is_zerotensor()


def is_checkpoint(node: fx.Node) -> bool:
    """Whether a node is a call of `torch.utils.checkpoint`, whose body is a graph of its own.

    Assumed: the op `tag_activation_checkpoint`, with the body as its first argument. Seen on torch
    2.11 to 2.13.
    """
    return node.target is torch.ops.higher_order.tag_activation_checkpoint


def body_name(node: fx.Node) -> str:
    """Under which name the graph's module holds the body of a checkpoint call.

    Assumed: the first argument is a `get_attr` node whose target is that name; see `is_checkpoint`.
    """
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return str(first.target)


def checkpoint_context(body: fx.GraphModule) -> Callable[..., Any] | None:
    """The `context_fn` that the model's author gave to a checkpoint, or None.

    Assumed: `meta["_checkpoint_context_fn"]` of the body. Seen on torch 2.11 to 2.13.
    """
    return body.meta.get("_checkpoint_context_fn")


def transform_depth(node: fx.Node) -> int:
    """1 for a node that starts a function transform (vmap, grad, jvp), -1 for one that ends it.

    Assumed: Dynamo writes `torch.vmap(f)(x)` as `..._increment_nesting`, the ops of `f`, and
    `..._decrement_nesting`. Seen on torch 2.11 to 2.13.
    """
    name = getattr(node.target, "__name__", "")
    return name.endswith("_increment_nesting") - name.endswith("_decrement_nesting")


def gradient_mode(node: fx.Node) -> bool | None:
    """What a node sets the recording of gradients to; None for a node that does not set it.

    Assumed: `no_grad` and its like are calls of `torch._C._set_grad_enabled` with one constant.
    Seen on torch 2.11 to 2.13.
    """
    return bool(node.args[0]) if node.target is torch._C._set_grad_enabled else None


def is_registered(node: fx.Node) -> bool:
    """Whether a node calls an op by its name in the dispatcher: aten's or a custom one.

    Assumed: the target is an `OpOverload` or `OpOverloadPacket`, whose text is "library.op" or
    "library.op.overload". Seen on torch 2.11 to 2.13.
    """
    return isinstance(node.target, OpOverload | OpOverloadPacket)


def calls_model_code(node: fx.Node) -> bool:
    """Whether a node runs a function that the model's author wrote: a Function, a hook.

    Assumed: such ops are of the module `torch.ops.higher_order`. Seen on torch 2.11 to 2.13.
    """
    return getattr(node.target, "__module__", None) == "torch.ops.higher_order"


def known_number(node: fx.Node) -> int | float | bool | None:
    """The number that a node has at every call of its graph; None for one that may change.

    Assumed: the example of a number is a SymInt, SymFloat or SymBool, whose `node.expr` is a
    constant of sympy where torch guards on its value: dropout on a CPU asks for its rate, so that
    the graph is for one rate alone. Seen on torch 2.11 to 2.13.
    """
    value = example(node)
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return None
    expression = value.node.expr
    if isinstance(value, torch.SymBool):
        return bool(expression) if expression.is_Boolean and not expression.free_symbols else None
    if not expression.is_number:
        return None
    return int(expression) if isinstance(value, torch.SymInt) else float(expression)


def is_number_input(node: fx.Node) -> bool:
    """Whether an input of a graph is a Python number that Dynamo passes as a tensor of no axes.

    A dropout rate that changed is one. Assumed: its `meta["grapharg"]` has `pass_arg_as_tensor`,
    and what uses it takes `item()` of it, a SymFloat. Seen on torch 2.11 to 2.13.
    """
    argument = node.meta.get("grapharg")
    return bool(getattr(argument, "pass_arg_as_tensor", False))


def has_source(node: fx.Node) -> bool:
    """Whether it is still known where an input comes from; see `input_source`."""
    return getattr(node.meta.get("grapharg"), "source", None) is not None


def input_source(node: fx.Node) -> InputSource:
    """Where the value of an input comes from.

    Assumed: `meta["grapharg"].source` is a chain of steps, each with its `base`. One with `member`
    takes an attribute, one with `index` an item; an `NNModuleSource` marks its base as a module;
    the first is a local or a global variable. An input without (of a checkpointed body, say) has
    the name of its node. Seen on torch 2.11 to 2.13. Dynamo drops these once the backend has
    returned, so this is to be asked while it runs.
    """
    chain = list(steps(getattr(node.meta.get("grapharg"), "source", None)))
    if not chain:
        return InputSource(None, (str(node.target),))
    first = next((i for i, x in enumerate(chain) if isinstance(x, sources.NNModuleSource)), None)
    if first is None:
        start = chain[0]
        path, is_parameter = names(chain[1:])
        name = getattr(start, "local_name", None) or getattr(start, "global_name", None) or ""
        return InputSource(
            None,
            (str(name), *path),
            is_parameter,
            is_keyword=name == "kwargs" or getattr(start, "is_varkw", False),
            is_argument=name == "args" or getattr(start, "is_varargs", False),
        )
    path, is_parameter = names(chain[first + 1 :])
    return InputSource(expression(chain[first]), path, is_parameter)


def steps(source: Any) -> Iterator[Any]:
    """The steps of a source, the variable first."""
    if source is not None:
        yield from steps(getattr(source, "base", None))
        yield source


def names(chain: list[Any]) -> tuple[tuple[str, ...], bool]:
    """The names in a chain of steps, without the containers, and whether it ends at a parameter."""
    found: list[str] = []
    container = ""
    is_parameter = False
    for step in chain:
        member, index = getattr(step, "member", None), getattr(step, "index", None)
        if member in CONTAINERS and not container:
            container = member
        elif member is not None or index is not None:
            found.append(str(index if member is None else member))
            is_parameter = container == "_parameters"
            container = ""
    return tuple(found), is_parameter


def expression(source: Any) -> str:
    """Dynamo's expression for a source; a property since torch 2.12, a method before."""
    name = source.name
    return str(name() if callable(name) else name)


def module_expression(node: fx.Node) -> str:
    """Dynamo's expression for the innermost module whose forward made a node; "" at the root.

    Assumed: `meta["nn_module_stack"]` has the modules in the order of their calls, each with its
    expression, in which `._modules['name']` is shortened to `.name` where the name holds no quote
    or bracket; see `parse`. Seen on torch 2.11 to 2.13.
    """
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def module_class(node: fx.Node) -> str:
    """The name of the class of the innermost module whose forward made a node; "" at the root.

    Assumed: the second part of an entry of `meta["nn_module_stack"]` is the class, or its qualified
    name. Seen on torch 2.11 to 2.13.
    """
    stack = node.meta.get("nn_module_stack")
    found = next(reversed(stack.values()))[1] if stack else ""
    return found.rpartition(".")[2] if isinstance(found, str) else str(found.__name__)


QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
STEP = re.compile(
    rf"\.(?:{'|'.join(CONTAINERS)})\[(?P<key>{QUOTED})\]"
    rf"|\[(?P<index>-?\d+|{QUOTED})\]"
    rf"|\.(?P<name>(?:(?!\.|\[(?:-?\d+|{QUOTED})\]).)+)",
    re.DOTALL,
)
ROOT = re.compile(r"[LG]\['[^']*'\](?:\[\d+\])?")


def parse(expression: str, roots: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """A module's expression as its root and the names that lead from there.

    `roots` are expressions of modules known to be roots, see `InputSource`; without one that fits
    the root is a variable, and its item where the variable is an `*args`.

    L['self'].layers.0 -> L['self'], ("layers", "0")
    L['self'].heads._modules["it's"] -> L['self'], ("heads", "it's")
    """
    known = [root for root in roots if expression.startswith(root)]
    match = ROOT.match(expression)
    root = max(known, key=len) if known else match.group() if match else ""
    found = []
    for step in STEP.finditer(expression, len(root)):
        # A shortened name is what stood between the quotes, with its escapes.
        literal = step["key"] or step["index"] or f"'{step['name']}'"
        found.append(str(ast.literal_eval(literal)))
    return root, tuple(found)
