"""The products of every recipe, compared with their three lines; and with wrong ones."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from gemm.edges import values_and_gradients
from gemm.straight_line import (
    assert_products,
    drawn,
    linear_products,
    magnitude,
    matmul_products,
    taken,
    turned,
)
from unitscale import gemm
from unitscale.gemm import ProductFormats
from unitscale.recipes import RECIPES, parse_operand

FORMATS = {
    name: ProductFormats.from_gemm(recipe.main, "emulated")
    for name, recipe in RECIPES.items()
    if recipe.rounds
}
each_recipe = pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)

M, N, K = 37, 50, 139
"""No multiple of a block; more than one block of 128 in one of the three contractions."""
TERMS = [K, N, M]


def at_seed(function: Callable[..., list[Tensor]], *args, **kwargs) -> list[Tensor]:
    """What a function gives with the draws of one seed."""
    torch.manual_seed(11)
    return function(*args, **kwargs)


def compared(formats: ProductFormats, take=taken, bias: bool = False, batch: int = 1) -> None:
    """Assert that a linear layer's products are those of its three lines."""
    x, weight, grad = drawn(batch * M, K), drawn(N, K), drawn(batch * M, N)
    own_bias = drawn(1, N)[0] if bias else None
    shape = (M,) if batch == 1 else (batch, M)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return gemm.linear(x.view(*shape, K), weight, own_bias, formats=formats)

    got = at_seed(values_and_gradients, ours, [x, weight], grad.view(*shape, N))
    got = [got[0].view(-1, N), *got[1:]]
    want = at_seed(linear_products, x, weight, own_bias, grad, formats, take)
    sums = at_seed(linear_products, x, weight, None, grad, formats, magnitude)
    if own_bias is not None:
        sums[0] = sums[0] + own_bias.abs()
    assert_products(got, want, sums, [K, N, batch * M], formats.result)


@each_recipe
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_linear_is_three_lines(formats, bias):
    compared(formats, bias=bias)


@each_recipe
def test_linear_over_a_batch_contracts_grad_weight_over_all_rows(formats):
    compared(formats, batch=4)


def matmul_compared(formats: ProductFormats, take=taken) -> None:
    a, b, grad = drawn(3, M, K), drawn(3, K, N), drawn(3, M, N)
    ours = partial(gemm.matmul, formats=formats)
    got = at_seed(values_and_gradients, ours, [a, b], grad)
    want = at_seed(matmul_products, a, b, grad, formats, take)
    sums = at_seed(matmul_products, a, b, grad, formats, magnitude)
    assert_products(got, want, sums, TERMS, formats.result)


@each_recipe
def test_a_batched_product_is_three_lines(formats):
    matmul_compared(formats)


@each_recipe
@pytest.mark.parametrize("dims", [2, 3])
def test_a_weight_on_the_left_is_the_layer_turned_around(formats, dims):
    """`W @ x^T` is `(x W^T)^T`: the formats of its left operand are those of the weight."""
    x, weight, grad = drawn(M, K), drawn(N, K), drawn(M, N)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        columns = x.mT if dims == 2 else x.mT[None]
        return gemm.matmul(weight, columns, formats=formats.crossed())

    upstream = grad.mT if dims == 2 else grad.mT[None]
    got = at_seed(values_and_gradients, ours, [x, weight], upstream)
    sums = at_seed(linear_products, x, weight, None, grad, formats, magnitude)
    want = at_seed(linear_products, x, weight, None, grad, formats)
    got = [got[0].reshape(N, M).mT, *got[1:]]
    count = 1 if "stochastic" in str(formats) and dims == 2 else 3  # draws in another order there
    assert_products(got[:count], want[:count], sums[:count], TERMS[:count], formats.result)


def test_addmm_is_the_product_and_its_bias():
    formats = FORMATS["nvfp4"]
    bias, a, b = drawn(1, N), drawn(M, K), drawn(K, N)
    product = gemm.matmul(a, b, formats=formats)
    assert torch.equal(gemm.addmm(bias, a, b, formats=formats), bias + product)


HALF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # of a value, by a rounding at most
SCALED = {name: formats for name, formats in FORMATS.items() if formats.is_scaled}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("formats", SCALED.values(), ids=SCALED)
def test_a_model_in_sixteen_bits_is_one_in_float32_rounded_once(formats, dtype):
    """Scales meet the values in float32: products of the same values differ by a last rounding."""
    x, weight, grad = (torch.randn(shape).to(dtype) for shape in ((M, K), (N, K), (M, N)))
    run = lambda *args: gemm.linear(*args, formats=formats)
    got = at_seed(values_and_gradients, run, [x, weight], grad)
    want = at_seed(values_and_gradients, run, [x.float(), weight.float()], grad.float())
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=HALF[dtype], atol=2.0**-25)


# What must be noticed.


def along_the_other_axis(x: Tensor, text: str | None, axis: int) -> Tensor:
    operand = parse_operand(text or "as is")
    return taken(x, text, axis if operand.transform else -3 - axis)


class CopyOfTheFirst:
    """The second copy of a tensor made from the first one, which is rounded already."""

    def __init__(self) -> None:
        self.first: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, text: str | None, axis: int) -> Tensor:
        if text is None or parse_operand(text).transform:
            return taken(x, text, axis)
        found = taken(self.first.get(id(x), x), text, axis)
        self.first.setdefault(id(x), found)
        return found


def without(word: str, x: Tensor, text: str | None, axis: int) -> Tensor:
    """Operands without a word of their texts."""
    return taken(x, text and text.replace(word, ""), axis)


def rounded_outside(x: Tensor, text: str | None, axis: int) -> Tensor:
    """Rounded first, and turned then."""
    if text is None or " hadamard=16" not in text:
        return taken(x, text, axis)
    y = taken(x, text.replace(" hadamard=16", ""), axis)
    return turned(y, 16) if axis == -1 else turned(y.mT, 16).mT


FOLLOWS_THE_CONTRACTION = ("fp8-rowwise", "fp8-rowwise-hp", "fp8-block", "mxfp8", "mxfp4", "nvfp4")
each_compared = pytest.mark.parametrize("compare", [compared, matmul_compared], ids=["nn", "bmm"])


@each_compared
@pytest.mark.parametrize("name", FOLLOWS_THE_CONTRACTION)
def test_scales_along_the_other_axis_are_noticed(name, compare):
    with pytest.raises(AssertionError, match="times allowed"):
        compare(FORMATS[name], along_the_other_axis)


@each_compared
@pytest.mark.parametrize("name", ["fp8-rowwise", "fp8-block", "mxfp8", "mxfp6", "mxfp4"])
def test_a_second_copy_made_of_the_first_is_noticed(name, compare):
    with pytest.raises(AssertionError, match=r"product [12]: .* times allowed"):
        compare(FORMATS[name], CopyOfTheFirst())


@each_compared
@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-units"])
@pytest.mark.parametrize("word", [" stochastic", " hadamard=16"])
def test_gradients_to_nearest_and_a_missing_transform_are_noticed(name, word, compare):
    with pytest.raises(AssertionError, match=r"product [12]: .* times allowed"):
        compare(FORMATS[name], partial(without, word))


@each_compared
@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-units"])
def test_a_transform_after_the_rounding_is_noticed(name, compare):
    with pytest.raises(AssertionError, match=r"product 2: .* times allowed"):
        compare(FORMATS[name], rounded_outside)


def test_assert_products_sees_one_wrong_product():
    x, weight, grad = drawn(M, K), drawn(N, K), drawn(M, N)
    formats = ProductFormats()
    right = linear_products(x, weight, None, grad, formats)
    sums = linear_products(x, weight, None, grad, formats, magnitude)
    assert_products(right, [y.clone() for y in right], sums, TERMS, None)
    for index in range(3):
        wrong = list(right)
        wrong[index] = wrong[index] * (1 + 2.0**-8)
        with pytest.raises(AssertionError, match=f"product {index}"):
            assert_products(wrong, right, sums, TERMS, None)
        assert_products(wrong, right, sums, TERMS, "BF16")  # a spacing there
        with pytest.raises(AssertionError, match=f"product {index}"):
            assert_products(wrong, right, sums, TERMS, "FP16")
