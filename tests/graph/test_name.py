"""Names in a graph are those of `named_modules` and `named_parameters`, whatever they are."""

from collections import Counter

import pytest
import torch
from torch import Tensor, fx, nn

from unitscale.graph.capture import drop_idle_calls, tensor_nodes
from unitscale.graph.name import input_name, is_parameter, module_path
from unitscale.units import apply_recipe, rows, unit_scale

AWKWARD = [
    *("G", "L", "self", "args", "kwargs", "modules_", "0", "model"),
    *("it's", 'say "hi"', "both ' and \"", "a]b", "a[b", "a[0", "[0]", "['x']", "a\\b", "a\\'b"),
    *("two words", "a-b", "{x}", "{0}", "ü", "layers[0]", "L['self']", "line\nbreak", "#1"),
]


class Leaf(nn.Module):
    """A linear layer below a module of the same name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({name: nn.Linear(4, 4)})
        self.key = name

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[self.key](x)


class Model(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, Leaf(name))
        self.key = name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.key)(x).sum()


def captured(model: nn.Module, *inputs: Tensor, arguments=(), **named: Tensor) -> list[fx.Graph]:
    """The graphs of one call, with the names of their tensors noted."""
    graphs: list[fx.Graph] = []

    def backend(module: fx.GraphModule, example_inputs):
        drop_idle_calls(module.graph)
        tensor_nodes(module.graph, arguments)
        graphs.append(module.graph)
        return module.forward

    torch.compile(model, backend=backend)(*inputs, **named)
    return graphs


def paths(graphs: list[fx.Graph]) -> set[str]:
    return {module_path(n) for graph in graphs for n in graph.nodes if n.op.startswith("call_")}


def inputs_of(graphs: list[fx.Graph]) -> list[str]:
    return [input_name(n) for graph in graphs for n in graph.nodes if n.op == "placeholder"]


def parameters_of(graphs: list[fx.Graph]) -> list[str]:
    nodes = (n for graph in graphs for n in graph.nodes if n.op == "placeholder")
    return [input_name(n) for n in nodes if is_parameter(n)]


@pytest.mark.parametrize("name", AWKWARD)
def test_names_are_those_of_the_model(name) -> None:
    model = Model(name)
    graphs = captured(model, torch.ones(2, 4))
    modules = {path for path, _ in model.named_modules()}
    assert paths(graphs) <= modules
    assert f"{name}.inner.{name}" in paths(graphs)
    assert Counter(parameters_of(graphs)) == Counter(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["L", "self", "args", "it's", "a]b", "a[0", "a\\b"])
@pytest.mark.filterwarnings("ignore:.*keeps every product of this call")
def test_a_pattern_that_matches_a_module_holds(name) -> None:
    """A skipped layer computes what it does in full precision; one that is not skipped does not."""

    x = torch.randn(8, 4)

    def output(recipe: str, **options) -> Tensor:
        torch.manual_seed(0)
        return apply_recipe(Model(name), recipe, inner="eager", **options)(x).detach()

    pattern = "".join("?" if letter in "[]*?" else letter for letter in f"{name}.inner.{name}")
    exact = output("fp32")
    assert torch.equal(output("fp8-none", skip=[pattern]), exact)
    assert not torch.equal(output("fp8-none"), exact)


class Arguments(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.args = nn.ParameterList([torch.ones(4), torch.ones(4)])

    def forward(self, x, many, *rest, scale, **others) -> Tensor:
        y = super().forward(x) + many["a"] * many["b"][0] + self.args[0] * self.args[1]
        return (y + rest[0] + scale + others["shift"]).sum()


def test_inputs_have_the_names_of_arguments() -> None:
    one = torch.ones(4)
    graphs = captured(
        Arguments(), one, {"a": one + 1, "b": [one + 2]}, one + 3, scale=one + 4, shift=one + 5
    )
    assert set(inputs_of(graphs)) == {
        *("weight", "bias", "args.0", "args.1", "x", "many.a", "many.b.0", "rest.0"),
        *("scale", "shift"),
    }


def test_inputs_of_a_scaled_model_have_the_names_of_arguments() -> None:
    """It is called by a function of `*args, **kwargs`, whose places have names in the model."""
    one = torch.ones(4)
    model = unit_scale(Arguments(), "fp32-units", inner="eager")
    model(one, {"a": one + 1, "b": [one + 2]}, one + 3, scale=one + 4, shift=one + 5).backward()
    found = {row.name for row in rows(model) if row.op in ("input", "parameter")}
    assert found == {
        *("weight", "bias", "args.0", "args.1", "x", "many.a", "many.b.0", "args.2"),
        *("scale", "shift"),
    }


class Unconventional(nn.Module):
    """Calls itself `me`, and breaks the graph, so that the rest is a frame of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(me, x: Tensor) -> Tensor:  # noqa: N805 - that is the point
        x = me.first(x)
        torch._dynamo.graph_break()
        return me.second(x).sum()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch 2.13
def test_the_module_of_a_frame_may_have_any_name() -> None:
    model = Unconventional()
    graphs = captured(model, torch.ones(2, 4))
    assert len(graphs) == 2
    assert paths(graphs) == {"first", "second", ""}
    assert parameters_of(graphs) == [name for name, _ in model.named_parameters()]


def test_two_modules_of_a_frame_keep_their_variables_names() -> None:
    left, right = nn.Linear(4, 4), nn.Linear(4, 4)
    graphs: list[fx.Graph] = []

    def backend(module: fx.GraphModule, inputs):
        tensor_nodes(module.graph)
        graphs.append(module.graph)
        return module.forward

    def function(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        return second(first(x))

    torch.compile(function, backend=backend)(left, right, torch.ones(2, 4))
    names = {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert set(parameters_of(graphs)) == names
    assert paths(graphs) == {"first", "second"}
