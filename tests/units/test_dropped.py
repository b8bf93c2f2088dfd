"""What stays of a model that is gone, and what grows with a long life: nothing of ours."""

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from units.training import TwoLayers
from unitscale.units import unit_scale
from unitscale.units.forward import session_of

# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(scope="module", autouse=True)
def only_what_is_new() -> Iterator[None]:
    """Collections look at what these tests make, not at the millions of objects of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


class Broken(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        torch._dynamo.graph_break()
        return self.second(y).square().mean()


class Looped(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            torch._dynamo.graph_break()
            x = layer(x).tanh()
        return x.square().mean()


def batch(size: int = 4) -> Tensor:
    return torch.randn(size, 8)


def gone(*references: "weakref.ref[object]") -> bool:
    gc.collect()
    return all(reference() is None for reference in references)


def watched(model: nn.Module) -> list["weakref.ref[object]"]:
    """The model, its session and its graphs, without keeping them."""
    session = session_of(model)
    graphs = [weakref.ref(executable) for executable in session.executables]
    assert graphs
    return [weakref.ref(model), weakref.ref(session), *graphs]


def no_gradient(model: nn.Module) -> None:
    with torch.no_grad():
        model(batch())


def one_step(model: nn.Module) -> None:
    model(batch()).backward()


def many_steps(model: nn.Module) -> None:
    for size in range(4, 10):
        model(batch(size)).backward()


def no_backward(model: nn.Module) -> None:
    model(batch())


@pytest.mark.parametrize("use", [no_gradient, one_step, many_steps, no_backward])
@pytest.mark.parametrize("make", [TwoLayers, Broken, Looped])
def test_a_dropped_model_leaves_no_session_and_no_graph(
    make: Callable[[], nn.Module], use: Callable[[nn.Module], None]
) -> None:
    model = unit_scale(make(), "fp8", inner="eager")
    use(model)
    references = watched(model)
    assert not gone(*references)
    del model
    assert gone(*references)


def test_unscale_and_set_recipe_let_go_of_the_session_before() -> None:
    model = unit_scale(TwoLayers(), "fp8", inner="eager")
    one_step(model)
    _, *references = watched(model)
    us.set_recipe(model, "fp32-units")
    assert gone(*references)
    one_step(model)
    _, *references = watched(model)
    us.unscale(model)
    assert gone(*references)
    one_step(model)


def test_a_loss_that_outlives_its_model_still_has_its_gradients() -> None:
    torch.manual_seed(0)
    plain = TwoLayers()
    torch.manual_seed(0)
    model = unit_scale(TwoLayers(), "fp32-units", inner="eager")
    one_step(model)
    x = batch()
    weight = model.first.weight
    losses = [model(x), plain(x)]
    model.zero_grad()
    session = weakref.ref(session_of(model))
    del model
    assert gone(session)
    for loss in losses:
        loss.backward()
    assert torch.equal(weight.grad, plain.first.weight.grad)


def test_graphs_do_not_grow_with_resets_of_the_compiler() -> None:
    model, counts = unit_scale(TwoLayers(), "fp8", inner="eager"), []
    for _ in range(4):
        one_step(model)
        no_gradient(model)
        counts.append(len(session_of(model).executables))
        torch.compiler.reset()
    assert counts == [counts[0]] * 4
    assert session_of(model).store.step == 4


def test_what_recomputations_need_is_remembered_within_bounds() -> None:
    model = unit_scale(TwoLayers(), "fp8", inner="eager", remeasure="once")
    one_step(model)
    remembered = session_of(model).terms.remembered
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        for _ in range(300):
            model(batch())
    assert 0 < len(remembered) <= 256
