"""Products with a vector: rounded as the matrix of one row or one column that it stands for."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from gemm.edges import assert_same_bits, values_and_gradients
from gemm.straight_line import assert_products, drawn, magnitude, matmul_products, taken
from gemm.test_six_operands import FORMATS, along_the_other_axis, at_seed
from unitscale import gemm
from unitscale.gemm import ProductFormats

N, K = 50, 139

FAMILIES = (
    *("fp16", "fp8", "fp8-current", "fp8-rowwise", "fp8-rowwise-hp", "fp8-block"),
    *("mxfp8", "mxfp4-rceil", "nvfp4", "nvfp4-units"),
)

TEXTS = {
    "tiles": ProductFormats.of("E4M3FN current 32x32", "E5M2 current 32x32"),
    "six texts": ProductFormats(
        "E4M3FN current row",
        "MX_E4M3FN current floor 1x32",
        "E5M2 current 1x128",
        "E4M3FN current 128x128",
        None,
        "MX_E2M1FN current floor 1x32",
    ),
    **{name: FORMATS[name] for name in FAMILIES},
}
each = pytest.mark.parametrize("formats", TEXTS.values(), ids=TEXTS)

SHAPES = {
    "vector @ matrix": ((K,), (K, N)),
    "matrix @ vector": ((N, K), (K,)),
    "vector @ vector": ((K,), (K,)),
    "vector @ batch": ((K,), (3, K, N)),
    "batch @ vector": ((3, N, K), (K,)),
}
each_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def as_matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A row on the left, a column on the right."""
    return a[None] if a.dim() == 1 else a, b[:, None] if b.dim() == 1 else b


def operands(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """Vectors whose elements are of several sizes, matrices whose rows and columns are."""
    return [drawn(1, *shape)[0] for shape in shapes]


@each
@each_shape
def test_a_vector_is_the_matrix_that_it_stands_for(shapes, formats):
    a, b = operands(shapes)
    upstream = torch.randn((a @ b).shape)
    got = at_seed(values_and_gradients, partial(gemm.matmul, formats=formats), [a, b], upstream)

    def of_matrices(a: Tensor, b: Tensor) -> Tensor:
        return gemm.matmul(*as_matrices(a, b), formats=formats).reshape(upstream.shape)

    assert_same_bits(got, at_seed(values_and_gradients, of_matrices, [a, b], upstream))


def compared(formats: ProductFormats, a: Tensor, b: Tensor, take=taken) -> None:
    """Assert that the three products with a vector are their three lines."""
    left, right = as_matrices(a, b)
    grad = drawn(1, left.shape[-2], right.shape[-1])[0]
    upstream = grad.reshape((a @ b).shape)
    got = at_seed(values_and_gradients, partial(gemm.matmul, formats=formats), [a, b], upstream)
    want = at_seed(matmul_products, left, right, grad, formats, take)
    sums = at_seed(matmul_products, left, right, grad, formats, magnitude)
    got = [x.reshape(y.shape) for x, y in zip(got, want, strict=True)]
    terms = [left.shape[-1], right.shape[-1], left.shape[-2]]
    count = 1 if "stochastic" in str(formats) else 3  # a scale of its own is drawn for one row
    assert_products(got[:count], want[:count], sums[:count], terms[:count], formats.result)


@each
@pytest.mark.parametrize("shapes", list(SHAPES.values())[:3], ids=list(SHAPES)[:3])
def test_a_product_with_a_vector_is_three_lines(shapes, formats):
    compared(formats, *operands(shapes))


@pytest.mark.parametrize("name", ["fp8-rowwise", "mxfp8", "mxfp4-rceil", "nvfp4"])
def test_a_matrix_rounded_along_its_other_axis_is_noticed(name):
    with pytest.raises(AssertionError, match="times allowed"):
        compared(TEXTS[name], *operands(SHAPES["vector @ matrix"]), along_the_other_axis)


@each
def test_a_batch_that_is_repeated_is_rounded_before_it_is(formats):
    """[2, 1, n, k] @ [3, k, n]: the same output as of the repeated batches, one by one."""
    a, b = drawn(2, 1, N, K), drawn(3, K, N)
    got = at_seed(gemm.matmul, a, b, formats=formats)
    want = at_seed(matmul_products, a, b, torch.zeros(2, 3, N, N), formats)
    sums = at_seed(matmul_products, a, b, torch.zeros(2, 3, N, N), formats, magnitude)
    assert_products([got], want[:1], sums[:1], [K], formats.result)


class Vectors(nn.Module):
    """A weight on either side of a vector, or of the matrix of one row that stands for it."""

    def __init__(self, is_matrix: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.right, self.left = nn.Parameter(drawn(64, 48)), nn.Parameter(drawn(32, 48))
        self.is_matrix = is_matrix

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_matrix:
            return self.left @ (x @ self.right)
        return (self.left @ (x[None] @ self.right).mT)[:, 0]


@pytest.mark.parametrize("name", ["fp8-rowwise-hp", "fp8-block", "mxfp8", "fp8-delayed"])
def test_a_model_of_vectors_has_the_numerics_of_matrices(name):
    x = torch.randn(64)
    found = []
    for is_matrix in (False, True):
        torch._dynamo.reset()
        model = us.apply_recipe(Vectors(is_matrix), name)
        y = model(x)
        y.square().sum().backward()
        assert us.coverage(model) == 1.0
        found.append([y.detach(), model.right.grad, model.left.grad])
    assert_same_bits(*found)
