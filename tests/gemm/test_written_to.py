"""A model may write into what a product returns, as into the result of torch's own."""

import pytest
import torch
from torch import Tensor

import unitscale as us
from marks import slow
from unitscale.gemm import ProductFormats, conv1d, linear, matmul, rounded
from unitscale.gemm import scaled_dot_product_attention as attention

# Dynamo instantiates autograd.Function for itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

FP8 = ProductFormats.of("E4M3FN", "E5M2")

PRODUCTS = {
    "linear": lambda x, w: linear(x, w, formats=FP8),
    "linear with a bias": lambda x, w: linear(x, w, w[0], formats=FP8),
    "matmul": lambda x, w: matmul(x, x.mT, formats=FP8),
    "matmul by a vector": lambda x, w: matmul(x, w[0], formats=FP8),
    "matrix from the left": lambda x, w: matmul(w, x.mT, formats=FP8),
    "convolution": lambda x, w: conv1d(x.mT, w[:, :, None], formats=FP8),
    "attention": lambda x, w: attention(x, x, x, formats=FP8),
    "rounded": lambda x, w: rounded(x @ w, None, "E5M2"),
}

QUICK = ("linear", "attention", "rounded")
"""Products that are always compiled."""


def masked(y: Tensor) -> Tensor:
    """Zero where `overwritten` writes."""
    mask = torch.ones_like(y)
    mask[..., 0] = 0
    return y * mask


def overwritten(y: Tensor) -> Tensor:
    y[..., 0] = 0
    return y


@pytest.mark.parametrize(
    ("name", "is_compiled"),
    [
        *((name, False) for name in PRODUCTS),
        *((name, True) for name in QUICK),
        *(slow(name, True) for name in PRODUCTS if name not in QUICK),
    ],
)
def test_a_write_to_the_result_is_one_to_a_copy(name, is_compiled):
    product = PRODUCTS[name]
    x, w = torch.randn(2, 6, 8), torch.randn(8, 8)
    found = []
    for then in (masked, overwritten):
        inputs = [v.clone().requires_grad_() for v in (x, w)]

        def run(x: Tensor, w: Tensor, then=then) -> Tensor:
            return then(product(x, w)).square().sum()

        call = torch.compile(run, backend="aot_eager", fullgraph=True) if is_compiled else run
        loss = call(*inputs)
        found.append((loss, *torch.autograd.grad(loss, inputs, allow_unused=True)))
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class Masked(torch.nn.Module):
    """A layer whose output loses a position, as masked audio models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y[:, 1] = 0
        return y.square().sum()


@pytest.mark.parametrize("recipe", ["fp8-none", "fp8-current", "fp8-e4m3-none"])
def test_recipes_run_a_model_that_does(recipe):
    model = us.apply_recipe(Masked(), recipe, inner="eager")
    model(torch.randn(2, 4, 8)).backward()
    assert model.layer.weight.grad.abs().sum() > 0
