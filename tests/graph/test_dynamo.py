"""One test for each thing that torch does not document and the room `graph` relies on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from unitscale.graph import dynamo


def seen(
    model: Callable[..., Any],
    *inputs: Any,
    look: Callable[[fx.GraphModule], Any],
    times: int = 1,
    **options: Any,
) -> list[Any]:
    """What `look` finds in each graph that Dynamo captures of a call, while the backend runs."""
    found: list[Any] = []

    def backend(module: fx.GraphModule, example_inputs):
        found.append(look(module))
        return module.forward

    compiled = torch.compile(model, backend=backend, **options)
    for _ in range(times):
        compiled(*inputs)
    return found


def first_call(module: fx.GraphModule) -> fx.Node:
    return next(n for n in module.graph.nodes if n.op.startswith("call_"))


def calls(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op.startswith("call_")]


def placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def test_example_is_the_value_of_a_node() -> None:
    def look(module):
        value = dynamo.example(first_call(module))
        return value.shape, value.dtype, value.requires_grad

    x = torch.ones(2, 3, requires_grad=True)
    assert seen(torch.sin, x, look=look) == [((2, 3), torch.float32, True)]
    assert dynamo.example(fx.Graph().placeholder("x")) is None


def test_set_example_is_what_example_reads() -> None:
    node = fx.Graph().placeholder("x")
    dynamo.set_example(node, 3)
    assert dynamo.example(node) == 3


def test_running_fake_computes_an_example_again() -> None:
    def look(module):
        node = first_call(module)
        value = dynamo.example(node)
        with dynamo.running_fake(value):
            again = torch.nn.functional.linear(dynamo.example(node.args[0]), torch.ones(5, 3))
        return type(again) is type(value), again.shape[-1]

    assert seen(lambda x: x * 2, torch.ones(2, 3), look=look, dynamic=True) == [(True, 5)]


def test_running_fake_saves_through_no_hooks() -> None:
    """A checkpoint around a capture counts what goes through its hooks."""
    packed, counts = [], []
    fake_mode = FakeTensorMode()
    with fake_mode:
        value = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        for enter in (lambda: fake_mode, lambda: dynamo.running_fake(value)):
            before = len(packed)
            with enter():
                value.exp()
            counts.append(len(packed) - before)
    assert counts == [1, 0]


def test_storage_id_is_shared_by_a_view_only() -> None:
    def look(module):
        x, view, copy = (dynamo.storage_id(dynamo.example(n)) for n in calls(module)[:3])
        return x == view, x == copy, x != 0

    found = seen(lambda x: torch.cat([(y := x.sin()).view(-1), y.clone().view(-1)]), torch.ones(3),
                 look=look)  # fmt: skip
    assert found == [(True, False, True)]


def test_writes_counts_what_an_op_wrote() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.sin()
        y.add_(1)
        return y

    look = lambda module: dynamo.writes(dynamo.example(calls(module)[0]))
    assert seen(function, torch.ones(3), look=look) == [1]
    assert seen(lambda x: x.sin() + 1, torch.ones(3), look=look) == [0]
    with torch.inference_mode():
        assert dynamo.writes(torch.ones(3).add_(1)) == 0


def test_is_wrapper_subclass_knows_a_plain_tensor() -> None:
    assert not dynamo.is_wrapper_subclass(torch.ones(3))
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert dynamo.is_wrapper_subclass(nested)


def test_is_zero_tensor_knows_zeros_without_memory() -> None:
    x = torch.randn(3, requires_grad=True)
    (grad,) = torch.autograd.grad(torch.sgn(x).sum(), x)
    assert dynamo.is_zero_tensor(grad)
    copy = grad.clone()
    assert not dynamo.is_zero_tensor(copy)
    assert torch.equal(copy, torch.zeros(3))


def body(module: fx.GraphModule) -> fx.GraphModule:
    node = next(filter(dynamo.is_checkpoint, module.graph.nodes))
    return getattr(module, dynamo.body_name(node))


def test_a_checkpoint_is_a_call_with_a_body() -> None:
    def function(x: Tensor) -> Tensor:
        return checkpoint(torch.sin, x, use_reentrant=False).sum()

    look = lambda module: [str(n.target.__name__) for n in calls(body(module))]
    assert seen(function, torch.ones(3, requires_grad=True), look=look) == [["sin"]]


def test_checkpoint_context_is_what_the_author_gave() -> None:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    def contexts():
        return create_selective_checkpoint_contexts([torch.ops.aten.sin.default])

    def function(x: Tensor) -> Tensor:
        return checkpoint(torch.sin, x, use_reentrant=False, context_fn=contexts).sum()

    def plain(x: Tensor) -> Tensor:
        return checkpoint(torch.sin, x, use_reentrant=False).sum()

    look = lambda module: dynamo.checkpoint_context(body(module))
    x = torch.ones(3, requires_grad=True)
    assert callable(*seen(function, x, look=look))
    assert seen(plain, x, look=look) == [None]


def test_a_transform_has_a_start_and_an_end() -> None:
    depths = lambda module: [d for d in map(dynamo.transform_depth, module.graph.nodes) if d]
    assert seen(torch.vmap(torch.sin), torch.ones(3), look=depths) == [[1, -1]]
    gradient = torch.func.grad(lambda x: torch.vmap(torch.sin)(x).sum())
    found = seen(gradient, torch.ones(3), look=depths)[0]
    assert found[0] == 1
    assert found[-1] == -1
    assert sum(found) == 0
    assert seen(torch.sin, torch.ones(3), look=depths) == [[]]


def test_gradient_mode_is_what_no_grad_sets() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.sin()
        return x + y

    modes = lambda module: list(map(dynamo.gradient_mode, calls(module)))
    found = seen(function, torch.ones(3, requires_grad=True), look=modes)[0]
    assert found[0] is False
    assert [mode for mode in found if mode is not None] == [False, True]


def test_is_registered_knows_an_op_of_the_dispatcher() -> None:
    look = lambda module: [(dynamo.is_registered(n), str(n.target)) for n in calls(module)]
    found = seen(lambda x: torch.ops.aten.sin.default(x), torch.ones(3), look=look)
    assert found == [[(True, "aten.sin.default")]]
    assert not seen(torch.sin, torch.ones(3), look=look)[0][0][0]


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * 2


# torch 2.13 warns of its own way to trace a Function.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")
def test_calls_model_code_knows_a_function() -> None:
    look = lambda module: any(map(dynamo.calls_model_code, calls(module)))
    assert seen(lambda x: Twice.apply(x), torch.ones(3, requires_grad=True), look=look) == [True]
    assert seen(torch.sin, torch.ones(3, requires_grad=True), look=look) == [False]


def numbers(function: Callable[..., Any], *values: float) -> list[fx.GraphModule]:
    found: list[fx.GraphModule] = []

    def backend(module: fx.GraphModule, inputs):
        marks = [dynamo.is_number_input(n) for n in placeholders(module)]
        items = [dynamo.known_number(n) for n in calls(module) if n.target == "item"]
        found.append((marks, items))
        return module.forward

    compiled = torch.compile(function, backend=backend)
    for value in values:
        compiled(torch.ones(3), value)
    return found


def test_a_number_that_changes_is_an_input() -> None:
    found = numbers(lambda x, p: x * p, 0.25, 0.5)
    assert found[0] == ([False], [])
    assert found[1] == ([False, True], [None])  # it may be any


def test_a_number_that_torch_guards_is_known() -> None:
    found = numbers(lambda x, p: F.dropout(x, p), 0.25, 0.5)
    assert found[1] == ([False, True], [0.5])


def test_known_number_reads_sizes() -> None:
    look = lambda module: [dynamo.known_number(n) for n in placeholders(module)]
    found = seen(lambda x: x.sum() * x.size(0), torch.ones(3), look=look, dynamic=True)
    assert found == [[None, None]]  # a size that may change, a tensor
    node = fx.Graph().placeholder("x")
    dynamo.set_example(node, 3)
    assert dynamo.known_number(node) == 3


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"it's": nn.Linear(3, 3)})
        self.register_buffer("shift", torch.ones(3))
        self.plain = torch.ones(3)

    def forward(self, x, *others, scale, **more) -> Tensor:
        return self.layers["it's"](x) * self.shift + self.plain * others[0] * scale * more["last"]


def sources(module: fx.GraphModule) -> set[dynamo.InputSource]:
    assert all(map(dynamo.has_source, placeholders(module)))
    return set(map(dynamo.input_source, placeholders(module)))


def test_input_source_is_where_an_input_comes_from() -> None:
    source, found = dynamo.InputSource, []

    def backend(module: fx.GraphModule, inputs):
        found.extend(sources(module))
        return module.forward

    one = torch.ones(3)
    torch.compile(Model(), backend=backend)(one, one + 1, scale=one + 2, last=one + 3)
    assert set(found) == {
        source("L['self']", ("layers", "it's", "weight"), is_parameter=True),
        source("L['self']", ("layers", "it's", "bias"), is_parameter=True),
        source("L['self']", ("shift",)),
        source("L['self']", ("plain",)),
        source(None, ("x",)),
        source(None, ("others", "0"), is_argument=True),
        source(None, ("scale",)),
        source(None, ("more", "last"), is_keyword=True),
    }


def test_input_source_is_gone_after_the_backend() -> None:
    kept = seen(torch.sin, torch.ones(3), look=lambda module: module)[0]
    node = placeholders(kept)[0]
    assert not dynamo.has_source(node)
    assert dynamo.input_source(node).root is None


def test_module_expression_is_that_of_the_innermost_module() -> None:
    found: list[str] = []

    def backend(module: fx.GraphModule, inputs):
        found.extend(map(dynamo.module_expression, calls(module)))
        return module.forward

    one = torch.ones(3)
    torch.compile(Model(), backend=backend)(one, one, scale=one, last=one)
    assert dynamo.parse(found[0]) == ("L['self']", ("layers", "it's"))
    assert found[-1] == ""


PARSED = {
    "L['self']": ("L['self']", ()),
    "L['self'].layers.0": ("L['self']", ("layers", "0")),
    "L['self'].heads._modules[\"it's\"]": ("L['self']", ("heads", "it's")),
    "L['self']._modules['a]b'].c": ("L['self']", ("a]b", "c")),
    "L['self'].a[b.c": ("L['self']", ("a[b", "c")),
    "L['self'].two words": ("L['self']", ("two words",)),
    "L['self'].layers[3].x": ("L['self']", ("layers", "3", "x")),
    "L['args'][0].layer": ("L['args'][0]", ("layer",)),
    "G['model'].self.L": ("G['model']", ("self", "L")),
    "L['self'].a\\\\b": ("L['self']", ("a\\b",)),
    "": ("", ()),
}


@pytest.mark.parametrize("expression", PARSED)
def test_parse(expression) -> None:
    assert dynamo.parse(expression) == PARSED[expression]


def test_parse_prefers_a_root_that_is_known() -> None:
    expression = "L['trainer'].model.layers.0"
    assert dynamo.parse(expression, ("L['trainer'].model",))[1] == ("layers", "0")
    assert dynamo.parse(expression)[1] == ("model", "layers", "0")


COUNTS = {
    "sin": (torch.sin, [1]),
    "softmax": (lambda x: x.softmax(-1), [1]),
    "normalize": (lambda x: F.normalize(x, dim=-1), [1, 1]),
    "softsign": (F.softsign, [1, 1]),
    "trapezoid": (torch.trapezoid, [1, 1, 1]),
    "mul": (lambda x: torch.mul(x, x), [2]),
    "einsum": (lambda x: torch.einsum("ij,ij->i", x, x), [1, 1]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_gradients_by_step_counts_those_of_one_op(name) -> None:
    function, counts = COUNTS[name]

    def look(module):
        x, node, *_ = calls(module)
        return sorted(dynamo.gradients_by_step(node, x))

    x = torch.ones(2, 3, requires_grad=True)
    assert seen(lambda x: function(x.exp()).sum(), x, look=look) == [counts]


def test_gradients_by_step_counts_those_of_an_input() -> None:
    def look(module):
        node = calls(module)[0]
        return dynamo.gradients_by_step(node, node.all_input_nodes[0])

    x = torch.ones(2, 3, requires_grad=True)
    assert seen(F.softsign, x, look=look) == [[1, 1]]
    assert seen(F.softsign, torch.ones(3), look=look) == [[]]
