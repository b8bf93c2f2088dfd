"""Folded operations: what the factored edges give, by fewer kernels."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import unitscale.functional as U
from unitscale.functional.folded import can_fold
from validity import unfolded

VIEWS = {"t", "view", "_unsafe_view", "transpose", "expand", "detach", "new_empty", "alias"}


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def differentiate(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    output = function(*operands)
    weights = torch.linspace(-2, 2, output.numel()).to(output.dtype).view_as(output)
    return [output, *torch.autograd.grad(output, operands, weights)]


class Kernels(TorchDispatchMode):
    """Counts what runs, apart from what only makes a view."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.__name__.partition(".")[0]
        if name not in VIEWS:
            self.found[name] += 1
        return op(*args, **(kwargs or {}))


# Every factor is a power of two: 16 features, 64 rows.
POWERS = {
    "linear": (lambda x, w: U.linear(x, w), [(64, 16), (16, 16)]),
    "free": (lambda x, w: U.linear(x, w, constraint=None), [(4, 16, 16), (64, 16)]),
    "bias": (lambda x, w, b: U.linear(x, w, b), [(2, 2, 16, 16), (4, 16), (4,)]),
    "vector": (lambda x, w: U.linear(x, w), [(16,), (4, 16)]),
    "transposed": (lambda x, w: U.linear(x.mT, w.t()), [(4, 16, 16), (16, 64)]),
    "readout": (lambda x, w: U.linear_readout(x, w), [(64, 16), (4, 16)]),
    "bmm": (lambda x, y: U.bmm(x, y, constraint=None), [(2, 16, 64), (2, 64, 4)]),
    "matmul": (lambda x, y: U.matmul(x, y.mT), [(2, 16, 64), (2, 4, 64)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", POWERS)
def test_factors_that_are_powers_of_two_give_the_same_bits(name: str, dtype: torch.dtype) -> None:
    function, shapes = POWERS[name]
    # Small integers: sums are exact in any order and every format.
    operands = [torch.randint(-2, 3, shape).to(dtype).requires_grad_() for shape in shapes]
    folded = differentiate(function, operands)
    with unfolded():
        expected = differentiate(function, operands)
    assert len(folded) == len(operands) + 1
    for got, want in zip(folded, expected, strict=True):
        assert got.shape == want.shape
        assert torch.equal(got, want)


@pytest.mark.parametrize("constraint", ["to_output_scale", "gmean", None])
def test_any_factors_give_the_same_values(constraint: str | None) -> None:
    def product(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return U.linear(x, w, b, constraint=constraint)

    def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        skip, branch = U.residual_split(x, 0.7)
        return U.residual_add(product(branch, w, b), skip, 0.7)

    operands = [normal(5, 7, 24, dtype=torch.float64) for _ in "x"]
    operands += [normal(24, 24, dtype=torch.float64), normal(24, dtype=torch.float64)]
    for function in (product, layer):
        folded = differentiate(function, operands)
        with unfolded():
            expected = differentiate(function, operands)
        for got, want in zip(folded, expected, strict=True):
            # Sums of at most 35 products; the folded one rounds each term by its factor.
            torch.testing.assert_close(
                got, want, rtol=0, atol=35 * 2**-52 * want.abs().max().item()
            )


@pytest.mark.parametrize("name", [*POWERS, "residual"])
def test_a_second_derivative_is_that_of_the_factored_edges(name: str) -> None:
    def residual(x: Tensor, w: Tensor) -> Tensor:
        skip, branch = U.residual_split(x.sin(), 0.7)
        return U.residual_add((branch * w).sin(), skip, 0.7)

    function, shapes = POWERS.get(name, (residual, [(8, 4), (8, 4)]))
    operands = [normal(*shape, dtype=torch.float64) for shape in shapes]

    def second() -> list[Tensor]:
        output = function(*operands).square().sum()  # the gradient depends on every operand
        grads = torch.autograd.grad(output, operands, create_graph=True)
        total = sum((grad**2).sum() for grad in grads)
        return list(torch.autograd.grad(total, operands, allow_unused=True))

    folded = second()
    with unfolded():
        expected = second()
    for got, want in zip(folded, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11 * float(want.abs().max()))


def test_a_linear_layer_takes_as_many_kernels_as_torchs() -> None:
    x, weight, grad = normal(4, 8, 16), normal(16, 16), torch.randn(4, 8, 16)
    with Kernels() as ours:
        torch.autograd.grad(U.linear(x, weight), (x, weight), grad)
    with unfolded(), Kernels() as edges:
        torch.autograd.grad(U.linear(x, weight), (x, weight), grad)
    assert ours.found == {"addmm": 3}
    assert edges.found.total() == 6


def test_a_residual_layer_takes_two_passes_a_sum() -> None:
    x, grad = normal(4, 8), torch.randn(4, 8)

    def layer() -> None:
        skip, branch = U.residual_split(x)
        torch.autograd.grad(U.residual_add(branch, skip), x, grad)

    with Kernels() as ours:
        layer()
    with unfolded(), Kernels() as edges:
        layer()
    assert ours.found == {"mul": 2, "add_": 2}
    assert edges.found.total() == 6


@pytest.mark.parametrize("constraint", ["to_output_scale", None])
def test_attention_takes_its_common_factor_at_the_output(constraint: str | None) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return U.scaled_dot_product_attention(
            query, key, value, is_causal=True, constraint=constraint
        )

    operands = [normal(2, 3, 8, 16, dtype=torch.float64) for _ in range(3)]
    with Kernels() as ours:
        folded = differentiate(attention, operands)
    with unfolded(), Kernels() as edges:
        expected = differentiate(attention, operands)
    for got, want in zip(folded, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2**-48)
    assert edges.found["mul"] - ours.found["mul"] == (2 if constraint else 0)


def test_results_may_be_changed_in_place() -> None:
    x, weight = normal(2, 3, 8), normal(8, 8)
    output = U.linear(x, weight).relu_()
    skip, branch = U.residual_split(x)
    U.residual_add(branch * 2, skip).mul_(2).sum().backward()
    output.sum().backward()
    assert x.grad is not None


def test_only_needed_gradients_are_computed() -> None:
    x, weight = torch.randn(4, 8), normal(8, 8)
    with Kernels() as kernels:
        U.linear(x, weight).backward(torch.ones(4, 8))
    assert kernels.found["addmm"] == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch 2.13, jvp
def test_nothing_is_folded_where_the_edges_must_be_seen() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    answers = []

    def ask(x: Tensor) -> Tensor:
        answers.append(can_fold(x, weight))
        return x

    ask(x)
    torch.func.vmap(ask)(x)
    torch.func.jvp(ask, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        ask(torch.autograd.forward_ad.make_dual(x, x))
    with torch.autocast("cpu"):
        ask(x)
    assert answers == [True, False, False, False, False]
    assert not can_fold(x, weight.double())

    with torch.autograd.forward_ad.dual_level():
        bias = torch.autograd.forward_ad.make_dual(torch.zeros(8), torch.ones(8))
        tangent = torch.autograd.forward_ad.unpack_dual(U.linear(x, weight, bias)).tangent
    assert torch.equal(tangent, torch.full((4, 8), 0.5))  # 4 rows: 4**-0.5

    class Other(Tensor):
        pass

    assert not can_fold(x.as_subclass(Other), weight)


def test_autocast_multiplies_in_its_own_dtype() -> None:
    x, weight = normal(4, 8), normal(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = U.linear(x, weight)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
