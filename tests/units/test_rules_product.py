"""Every product of torch is rounded, or says why it is not."""

import operator
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.attention.flex_attention import flex_attention

from units.op_arguments import ARGUMENTS, draw, name_of
from units.training import assert_trains_as_plain
from unitscale.units import apply_recipe
from unitscale.units.forward import session_of
from unitscale.units.op_table import PRODUCTS
from unitscale.units.ops import GEMM, RULES, rule_of, unrounded_reason

FORMS = [form for op in PRODUCTS for form in op.forms]

pytestmark = pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated:UserWarning")


def called(form, args):
    if isinstance(form, str):
        return getattr(args[0], form)(*args[1:])
    return form(list(args)) if form is torch.linalg.multi_dot else form(*args)


class Calling(nn.Module):
    """Calls a function of tensors that it computes; the loss is far from unit scale."""

    def __init__(self, function, args) -> None:
        super().__init__()
        self.function = function
        self.places = [i for i, x in enumerate(args) if isinstance(x, Tensor)]
        self.tensors = nn.ParameterList([args[i].float() for i in self.places])
        self.others = list(args)

    def forward(self, x: Tensor) -> Tensor:
        args = list(self.others)
        for place, tensor in zip(self.places, self.tensors, strict=True):
            args[place] = tensor * x
        return self.function(args).square().mean() * 1e-3


def model_of(form) -> Calling:
    torch.manual_seed(0)
    return Calling(lambda args: called(form, args), ARGUMENTS[name_of(form)]())


def nodes(model: nn.Module) -> list[fx.Node]:
    graphs = (executable.module.graph for executable in session_of(model).executables)
    return [node for graph in graphs for node in graph.nodes]


def reasons(model: nn.Module) -> set[str]:
    return set(filter(None, map(unrounded_reason, nodes(model))))


def label(form) -> str:
    return f"{'Tensor' if isinstance(form, str) else form.__module__}.{name_of(form)}"


@pytest.mark.parametrize("form", [op.forms[0] for op in PRODUCTS if op.forms], ids=label)
def test_a_product_at_units_is_the_plain_one(form) -> None:
    assert_trains_as_plain(lambda: model_of(form), (torch.tensor(2.5),), steps=2)


def loss_and_gradients(form, recipe: str) -> tuple[nn.Module, list[Tensor]]:
    model = apply_recipe(model_of(form), recipe, inner="eager")
    loss = model(torch.tensor(1.0))
    loss.backward()
    return model, [loss.detach(), *(x.grad for x in model.tensors)]


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_a_product_is_rounded(form) -> None:
    """The result is that of the plain product up to the rounding of E4M3, and is not the same."""
    _, exact = loss_and_gradients(form, "fp32")
    torch._dynamo.reset()
    model, got = loss_and_gradients(form, "fp8-none")
    assert reasons(model) == set()
    assert any(rule_of(node).product for node in nodes(model))
    assert not torch.equal(got[0], exact[0])
    # E4M3 is off by 2^-4 of an operand at most, of the loss's square twice for each operand.
    bound = 2 * len(model.tensors) * 2**-4
    assert (got[0] - exact[0]).abs() <= bound * exact[0]


def fused_attention(model, x):
    return flex_attention(*(x.view(1, 2, 4, 8) for _ in range(3)))


def unexpanded(model, x):
    return F.multi_head_attention_forward(
        *(x, x, x, 8, 2, model.packed, None, model.one, model.one, False, 0.0, model.weight, None)
    )[0]


class Doubled(torch.autograd.Function):
    """A product that its author wrote with a backward of his own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight * 2

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        return 2 * grad @ weight.T, 2 * x.T @ grad


REASONS = {
    "power": (lambda m, x: torch.linalg.matrix_power(m.weight + x.mean(), 2), "by itself"),
    "exponential": (lambda m, x: torch.linalg.matrix_exp(m.weight * x.mean()), "by itself"),
    "distance": (lambda m, x: torch.cdist(x, m.weight), "a distance is a difference"),
    "flex attention": (fused_attention, "one kernel"),
    "attention with a bias of its keys": (unexpanded, "bias_k is set"),
    "Function": (lambda m, x: Doubled.apply(x, m.weight), "runs as it is"),
    "vmap": (lambda m, x: torch.vmap(lambda y: m.weight @ y)(x), "vmap"),
    "complex": (lambda m, x: (torch.complex(x, x) @ m.weight.cfloat()).abs(), "complex"),
    "write that is seen": (lambda m, x: written(m, x), "others see"),
}


def written(model, x):
    y = x.sin()
    z = y[:, :4]
    y.addmm_(x, model.weight)
    return torch.cat([z, z], 1) + y


class With(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(8, 8) / 8)
        self.packed = nn.Parameter(torch.randn(24, 8))
        self.one = nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x).square().mean()


@pytest.mark.parametrize("name", REASONS)
def test_a_product_that_is_not_rounded_says_why(name) -> None:
    function, words = REASONS[name]
    x = torch.randn(3, 8, 8) if "bias" in name else torch.randn(8, 8)
    model = apply_recipe(With(function), "fp8-none", inner="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex_attention advises to compile it with inductor
        model(x)
    found = reasons(model)
    assert any(words in reason for reason in found), found


NO_PRODUCTS = {
    "linear": lambda m, x: F.linear(x, m.weight),
    "elementwise": lambda m, x: x * m.weight + x / m.weight.exp(),
    "norm": lambda m, x: F.layer_norm(x, (8,)),
    "sum of indices": lambda m, x: x.index_add(0, torch.tensor([0]), m.weight[:1]),
    "inverse": lambda m, x: torch.linalg.inv(x + 9 * torch.eye(8)),
    "trace": lambda m, x: torch.einsum("ii->i", x),
    "integers": lambda m, x: x * (torch.ones(8, 8).long() @ torch.ones(8, 8).long()),
}


@pytest.mark.parametrize("function", NO_PRODUCTS.values(), ids=NO_PRODUCTS)
def test_what_is_no_product_or_is_rounded_has_no_reason(function) -> None:
    model = apply_recipe(With(function), "fp8-none", inner="eager")
    model(torch.randn(8, 8))
    assert reasons(model) == set()


def test_einsum_of_one_tensor_is_no_product() -> None:
    exact, got = (
        apply_recipe(With(NO_PRODUCTS["trace"]), recipe, inner="eager")
        for recipe in ("fp32", "fp8-none")
    )
    x = draw(8, 8).float()
    assert torch.equal(got(x), exact(x))


def test_a_custom_op_of_two_tensors_is_no_product() -> None:
    @torch.library.custom_op("unitscale_test::blend", mutates_args=())
    def blend(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    blend.register_fake(lambda x, y: torch.empty_like(x))
    blend.register_autograd(lambda ctx, grad: (grad, grad))
    model = apply_recipe(With(lambda m, x: blend(x, m.weight)), "fp8-none", inner="eager")
    model(torch.randn(8, 8))
    assert reasons(model) == set()


def test_a_kernel_computes_only_what_is_a_product() -> None:
    assert all(RULES[form].product for form in GEMM)
    assert operator.matmul in GEMM


@pytest.mark.filterwarnings("ignore:unit_scale.*torch.compile does not capture")
def test_a_recurrent_layer_says_that_it_is_not_rounded() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0].square().mean()

    with torch._dynamo.config.patch(allow_rnn=True):
        model = apply_recipe(Recurrent(), "fp8-none", inner="eager")
        model(torch.randn(3, 2, 4)).backward()
    assert any("recurrent layer" in reason for reason in reasons(model))
