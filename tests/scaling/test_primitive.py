import copy
import pickle

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unitscale.scaling import scale_bwd, scale_fwd, scaled

# torch's own forward-mode formulas still compile with torch.jit.script (torch 2.13, 2026-01).
ignore_jit = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

FWD, BWD = 0.3, 7.0
FACTORS = [(FWD, BWD), (1.0, BWD), (FWD, 1.0), (FWD, FWD)]


def assert_scaled(fn, x: Tensor, fwd: float, bwd: float) -> None:
    """`fn(x)` has value `fwd * x` and gradient `bwd * grad`, both rounded once."""
    y = fn(x)
    grad = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(y, x * fwd, rtol=0, atol=0)
    torch.testing.assert_close(got, grad * bwd, rtol=0, atol=0)


@pytest.mark.parametrize(("fwd", "bwd"), FACTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_scaled_multiplies_value_and_gradient_separately(fwd, bwd, dtype):
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    assert_scaled(lambda x: scaled(x, fwd, bwd), x, fwd, bwd)


def test_assert_scaled_fails_for_a_plain_product():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(AssertionError):
        assert_scaled(lambda x: x * FWD, x, FWD, BWD)


def test_scale_fwd_and_scale_bwd_touch_one_pass():
    x = torch.randn(3, requires_grad=True)
    assert_scaled(lambda x: scale_fwd(x, FWD), x, FWD, 1.0)
    assert_scaled(lambda x: scale_bwd(x, BWD), x, 1.0, BWD)


def test_factors_of_one_return_the_tensor_itself():
    x = torch.randn(3, requires_grad=True)
    assert scaled(x) is x
    assert scaled(x, 1, 1) is x


def test_forward_factor_of_one_copies_nothing():
    x = torch.randn(3, requires_grad=True)
    assert scale_bwd(x, BWD).data_ptr() == x.data_ptr()


def test_noncontiguous_input_and_no_grad():
    x = torch.randn(4, 6, requires_grad=True)
    assert_scaled(
        lambda x: scaled(x[:, ::2].T, FWD, BWD)[..., :0].sum() + scaled(x, FWD, BWD), x, FWD, BWD
    )
    with torch.no_grad():
        assert torch.equal(scaled(x, FWD, BWD), x * FWD)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factor_is_not_rounded_to_a_16_bit_dtype(dtype):
    """Every 16-bit value: the product is that with the float32 factor, rounded once."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    factor = 0.018257418583505537  # 1 / sqrt 3000; bfloat16 has .018311
    got = scaled(every, factor)
    torch.testing.assert_close(
        got, (every.float() * factor).to(dtype), rtol=0, atol=0, equal_nan=True
    )
    rounded = every * torch.tensor(factor, dtype=dtype).item()
    assert not torch.equal(got.nan_to_num(), rounded.nan_to_num())


def test_special_values_go_through():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    y = scaled(x, FWD, BWD)
    assert y[0].isnan()
    assert y[1:3].tolist() == [float("inf"), -float("inf")]
    assert torch.signbit(y[3])


def test_empty_and_scalar_tensors():
    assert scaled(torch.empty(0, 3), FWD, BWD).shape == (0, 3)
    assert scaled(torch.tensor(2.0), 0.5, BWD).item() == 1.0


def test_zero_factor_gives_zero_gradient():
    x = torch.randn(3, requires_grad=True)
    (grad,) = torch.autograd.grad(scale_bwd(x, 0.0).sum(), x)
    assert torch.equal(grad, torch.zeros(3))


def test_sparse_embedding_gradient_stays_sparse():
    weight = torch.randn(10, 4, requires_grad=True)
    F.embedding(torch.tensor([1, 3, 3]), scale_bwd(weight, BWD), sparse=True).sum().backward()
    assert weight.grad.is_sparse
    expected = torch.zeros(10, 4)
    expected[1], expected[3] = BWD, 2 * BWD
    assert torch.equal(weight.grad.to_dense(), expected)


@pytest.mark.parametrize(("fwd", "bwd"), FACTORS)
def test_double_backward_multiplies_by_the_square(fwd, bwd):
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(4, dtype=torch.float64)
    (grad,) = torch.autograd.grad((scaled(x, fwd, bwd) ** 3).sum(), x, create_graph=True)
    (hvp,) = torch.autograd.grad(grad, x, v)
    torch.testing.assert_close(grad, bwd * 3 * (fwd * x) ** 2)
    torch.testing.assert_close(hvp, bwd**2 * 6 * (fwd * x) * v)


@pytest.mark.parametrize(("fwd", "bwd"), FACTORS)
class TestTransforms:
    def test_grad_and_vjp(self, fwd, bwd):
        x = torch.randn(4)
        assert torch.equal(
            torch.func.grad(lambda x: scaled(x, fwd, bwd).sum())(x), torch.full((4,), bwd)
        )
        y, pull = torch.func.vjp(lambda x: scaled(x, fwd, bwd), x)
        assert torch.equal(y, x * fwd)
        assert torch.equal(pull(x)[0], x * bwd)

    def test_vmap_in_any_dimension_and_nested(self, fwd, bwd):
        x = torch.randn(3, 4, 5)
        scale = lambda x: scaled(x, fwd, bwd)
        for dim in (0, 1, 2):
            got = torch.func.vmap(scale, in_dims=dim, out_dims=dim)(x)
            assert torch.equal(got, x * fwd)
        assert torch.equal(torch.func.vmap(torch.func.vmap(scale))(x), x * fwd)

    def test_per_sample_gradients(self, fwd, bwd):
        x = torch.randn(3, 4)
        per_sample = torch.func.vmap(torch.func.grad(lambda x: (scaled(x, fwd, bwd) ** 2).sum()))
        torch.testing.assert_close(per_sample(x), bwd * 2 * fwd * x)

    @ignore_jit
    def test_forward_mode_agrees_with_reverse_mode(self, fwd, bwd):
        x, tangent = torch.randn(4), torch.randn(4)
        scale = lambda x: scaled(x, fwd, bwd)
        y, got = torch.func.jvp(scale, (x,), (tangent,))
        assert torch.equal(y, x * fwd)
        assert torch.equal(got, tangent * bwd)
        assert torch.equal(torch.func.jacfwd(scale)(x), torch.func.jacrev(scale)(x))

    @ignore_jit
    def test_dual_numbers(self, fwd, bwd):
        x, tangent = torch.randn(4, requires_grad=True), torch.randn(4)
        with fwAD.dual_level():
            y = fwAD.unpack_dual(scaled(fwAD.make_dual(x, tangent), fwd, bwd))
            assert torch.equal(y.primal, x * fwd)
            assert torch.equal(y.tangent, tangent * bwd)

    @ignore_jit
    def test_hessians_agree_in_all_modes(self, fwd, bwd):
        x = torch.randn(3, dtype=torch.float64)
        loss = lambda x: (scaled(x, fwd, bwd) ** 3).sum()
        expected = torch.diag(bwd**2 * 6 * fwd * x)
        for outer in (torch.func.jacfwd, torch.func.jacrev):
            for inner in (torch.func.jacfwd, torch.func.jacrev):
                torch.testing.assert_close(outer(inner(loss))(x), expected)


class ScaledLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.scale = scaled

    def forward(self, x):
        return self.scale(F.linear(x, scale_bwd(self.weight, BWD)), FWD)


def test_functional_call_and_copies_of_modules():
    module = ScaledLinear()
    x = torch.randn(2, 4)
    weights = {"weight": torch.randn(3, 4)}
    got = torch.func.functional_call(module, weights, (x,))
    assert torch.equal(got, F.linear(x, weights["weight"]) * FWD)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
        other(x).sum().backward()
        torch.testing.assert_close(other.weight.grad, BWD * x.sum(0).expand(3, 4))


def test_torch_function_modes_and_fx_see_one_call():
    seen = []

    class Record(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Record():
        scaled(torch.randn(3), FWD, BWD)
    assert seen.count(scaled) == 1
    graph = torch.fx.symbolic_trace(lambda x: scaled(x, FWD, bwd=BWD)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [scaled]


def test_changing_a_shared_result_in_place_is_refused():
    y = scale_bwd(torch.randn(3, requires_grad=True).clone(), BWD)
    with pytest.raises(RuntimeError, match="modified inplace"):
        y.add_(1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integer_input_is_refused(dtype):
    with pytest.raises(TypeError, match=rf"x has dtype {dtype}.*x.float\(\)"):
        scaled(torch.ones(3, dtype=dtype), 2.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["fwd", "bwd"])
def test_nonfinite_factor_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected a finite number"):
        scaled(torch.randn(3), **{name: value})


@pytest.mark.parametrize("name", ["fwd", "bwd"])
def test_tensor_or_text_factor_is_refused(name):
    with pytest.raises(
        TypeError, match=rf"{name} is tensor\(2\.\) \(Tensor\).*pass float\(factor\)"
    ):
        scaled(torch.randn(3), **{name: torch.tensor(2.0)})
    with pytest.raises(TypeError, match=f"{name} is '2' .str.*expected a Python number"):
        scaled(torch.randn(3), **{name: "2"})
