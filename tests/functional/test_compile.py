"""Every operation compiles without a graph break, to the same bits."""

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from op_case import DEFAULT, Case, normal
from op_cases import cases
from torch import Tensor

import unitscale.functional as U
from unitscale.scaling import scaled
from validity import unfolded


def families() -> dict[str, list[Case]]:
    """Cases by file; sequences, whose loop a compiler unrolls, are short here."""
    found = defaultdict(list)
    for case in cases():
        if case.op in {"rnn_tanh", "rnn_relu", "lstm", "gru"}:
            short = {**case.operands, "input": normal(4, 3, 128)}
            case = Case(**{**vars(case), "operands": short})
        found[getattr(U, case.op).__module__.rpartition(".")[2]].append(case)
    return found


def differentiate(
    function: Callable[[list[dict[str, Tensor]]], list[Tensor]], operands: list[dict[str, Tensor]]
) -> tuple[Tensor, ...]:
    """Outputs and gradients; the same dropout whoever calls."""
    torch.manual_seed(0)
    outputs = function(operands)
    leaves = [x for of_one in operands for x in of_one.values() if x.requires_grad]
    grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])
    return (*outputs, *grads)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", families().values(), ids=families().keys())
def test_compiled_operations_equal_eager_ones_to_the_bit(family: list[Case], dynamic: bool) -> None:
    def run(operands: list[dict[str, Tensor]]) -> list[Tensor]:
        return [
            case.call(of_one, DEFAULT if DEFAULT in case.constraints else None)
            for case, of_one in zip(family, operands, strict=True)
        ]

    operands = [case.draw() for case in family]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    got = differentiate(compiled, operands)
    with unfolded():  # a folded operation rounds once where edges round twice
        want = differentiate(run, operands)
    assert all(map(torch.equal, got, want))


def test_inductor_compiles_a_layer() -> None:
    def layer(x: Tensor, w: Tensor) -> Tensor:
        skip, branch = U.residual_split(x)
        return U.residual_add(U.gelu(U.linear(branch, w)), skip)

    x, w = torch.randn(32, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)
    for got, want in zip(
        torch.autograd.grad(compiled(x, w).sum(), (x, w)),
        torch.autograd.grad(layer(x, w).sum(), (x, w)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)  # fused kernels round in another order


def test_a_changing_batch_is_compiled_once_with_a_symbolic_size() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def step(x: Tensor, w: Tensor) -> Tensor:
        logits = U.softmax(U.linear(U.layer_norm(x, 8), w), -1)
        return U.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64))

    compiled = torch.compile(step, fullgraph=True, backend=count, dynamic=True)
    w = torch.randn(16, 8, requires_grad=True)
    for rows in (4, 6, 32):
        x = torch.randn(rows, 8)
        got, want = (torch.autograd.grad(f(x, w), w)[0] for f in (compiled, step))
        torch.testing.assert_close(got, want)
    assert len(graphs) == 1


def test_products_see_their_operands_as_they_are() -> None:
    graphs = []

    def capture(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x, w = torch.randn(4, 8, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    kernel = torch.randn(16, 8, 3, requires_grad=True)

    def products(x: Tensor, w: Tensor, kernel: Tensor) -> list[Tensor]:
        return [
            U.linear(x, w),
            U.matmul(x, w),
            U.bmm(x, x.mT),
            U.conv1d(x, kernel),
            U.scaled_dot_product_attention(x[None], x[None], x[None]),
            U.lstm(x, None, torch.cat([w] * 4), torch.cat([w] * 4))[0],
        ]

    torch.compile(products, fullgraph=True, backend=capture)(x, w, kernel)
    names = {"linear", "matmul", "bmm", "conv1d", "scaled_dot_product_attention"}
    found = [n for n in graphs[0].graph.nodes if getattr(n.target, "__name__", n.target) in names]
    assert len(found) == 5 + 1 + 8  # an LSTM of 8 steps has one product, then one a step
    for node in found:
        operands = [arg for arg in node.args if isinstance(arg, torch.fx.Node)]
        assert len(operands) >= 2
        for operand in operands:  # only the gradient is multiplied on the way in ...
            assert operand.target is scaled
            assert factors(operand)[0] == 1.0
        (user,) = node.users
        assert user.target is scaled  # ... and only the value on the way out
        assert factors(user)[1] == 1.0


def factors(node: torch.fx.Node) -> tuple[float, float]:
    """The two factors of a `scaled` node, however they were passed."""
    given = dict(zip(("x", "fwd", "bwd"), node.args, strict=False)) | dict(node.kwargs)
    return given.get("fwd", 1.0), given.get("bwd", 1.0)
