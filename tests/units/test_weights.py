"""What counts as a weight: a parameter in any shape, a part, a copy, several joined; no more."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from unitscale.formats import E4M3FN
from unitscale.recipes import Current, Gemm, Operand, PerTile, Recipe, Rule
from unitscale.units.forward import session_of
from unitscale.units.products import is_turned_around, kind_of

pytestmark = pytest.mark.filterwarnings("ignore:.*went to zero, at the scale in force")

WEIGHTS = {
    "T": lambda w: w.T,
    "mT": lambda w: w.mT,
    "H": lambda w: w.H,
    "mH": lambda w: w.mH,
    "t": lambda w: w.t(),
    "transpose": lambda w: torch.transpose(w, 0, 1),
    "permute": lambda w: w.permute(1, 0),
    "swapdims": lambda w: w.swapdims(0, 1),
    "movedim": lambda w: w.movedim(0, 1),
    "adjoint": lambda w: w.adjoint(),
    "data": lambda w: w.data.T,
    "detach": lambda w: w.detach().T,
    "a number": lambda w: w.view(2, 8, 32)[1].T,
    "a slice": lambda w: w[:].T,
    "a part": lambda w: w[4:8].T,
    "a new axis": lambda w: w.T[None],
    "unsqueeze": lambda w: w.T.unsqueeze(0),
    "narrow": lambda w: w.narrow(0, 0, 8).T,
    "select": lambda w: w.view(2, 8, 32).select(0, 1).T,
    "chunk": lambda w: w.chunk(2)[0].T,
    "split": lambda w: torch.split(w, 8)[1].T,
    "tensor_split": lambda w: w.tensor_split(2)[1].T,
    "unbind": lambda w: w.view(2, 8, 32).unbind(0)[0].T,
    "clone": lambda w: w.clone().T,
    "contiguous": lambda w: w.T.contiguous(),
    "float": lambda w: w.float().T,
    "reshape": lambda w: w.reshape(4, 4, 32).reshape(16, 32).T,
    "repeat": lambda w: w.repeat(2, 1).T,
    "cat": lambda w: torch.cat([w, w[:4]]).T,
    "stack": lambda w: torch.stack([w, w]).mT,
}
OTHERS = {
    "half of it": lambda w, x: x @ (0.5 * w).T,
    "in place": lambda w, x: x @ w.clone().mul_(0.5).T,
    "with an input": lambda w, x: x @ torch.cat([w, x]).T,
    "an embedding": lambda w, x: x @ w[torch.tensor([1, 2])].T,
    "dropout": lambda w, x: x @ F.dropout(w, 0.5, training=False).T,
    "inputs": lambda w, x: x @ x.T,
}

TILES = Operand(E4M3FN, Current(), PerTile(8, 8))
RECIPE = Recipe(
    name="weights apart",
    rules=(Rule(op="linear", gemm=Gemm.of(Operand(E4M3FN, Current()), weight=TILES)),),
)


class Calling(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.w = function, nn.Parameter(torch.randn(16, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w, x)


def product_of(function):
    """The only product of a model, and the row that says what multiplies it."""
    model = us.apply_recipe(Calling(function), RECIPE)
    model(torch.randn(4, 32))
    graphs = (executable.module.graph for executable in session_of(model).executables)
    (node,) = (n for graph in graphs for n in graph.nodes if "matmul" in str(n.target))
    return node, us.coverage(model), str(us.summary(model))


@pytest.mark.parametrize("function", WEIGHTS.values(), ids=WEIGHTS)
def test_views_parts_and_copies_of_a_parameter_are_weights(function):
    node, coverage, summary = product_of(lambda w, x: x @ function(w))
    assert (kind_of(node), is_turned_around(node), coverage) == ("linear", False, 1.0)
    assert "output E4M3FN current @ E4M3FN current 8x8" in summary


@pytest.mark.parametrize("name", ["T", "a part", "chunk", "clone", "cat"])
def test_on_the_left_they_are_the_weights_too(name):
    node, coverage, summary = product_of(lambda w, x: WEIGHTS[name](w).mT @ x.T)
    assert (kind_of(node), is_turned_around(node), coverage) == ("linear", True, 1.0)
    assert "output E4M3FN current 8x8 @ E4M3FN current" in summary


@pytest.mark.filterwarnings("ignore:.*no product in this call matches the rule")
@pytest.mark.filterwarnings("ignore:.*0.0% of the multiply-adds")
@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_what_is_computed_or_mixed_with_inputs_is_no_weight(function):
    node, coverage, _ = product_of(function)
    assert (kind_of(node), coverage) == ("matmul", 0.0)
