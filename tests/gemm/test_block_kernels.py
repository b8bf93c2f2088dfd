"""Products with scales for rows and blocks: CUDA's rules without data, values in software."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gemm import software
from gemm.edges import values_and_gradients
from unitscale import gemm
from unitscale.gemm import ProductFormats, executor
from unitscale.gemm.capability import kernel_of
from unitscale.gemm.executor import plan
from unitscale.gemm.kernel import scaled_mm_by
from unitscale.gemm.operand import NOT_SHARED
from unitscale.gemm.scaled_product import NO_FACTORS, ScaledProduct
from unitscale.recipes import RECIPES

CPU = torch.device("cpu")
MXFP8_HYBRID = ProductFormats.of("MX_E4M3FN current floor 1x32", "MX_E5M2 current floor 1x32")


def formats_of(name: str) -> ProductFormats:
    """A recipe's products, by `scaled_mm`."""
    if name == "mxfp8-hybrid":
        return MXFP8_HYBRID._replace(executor="scaled_mm")
    return ProductFormats.from_gemm(RECIPES[name].main, "scaled_mm")


def without_chance(formats: ProductFormats) -> ProductFormats:
    """The same rounded to nearest: what stochastic rounding needs is no matter of a kernel."""
    return ProductFormats(*(x and x.replace(" stochastic", "") for x in formats))


BLOCKWISE = ("mxfp8", "mxfp8-rceil", "mxfp8-hybrid", "nvfp4", "nvfp4-units", "fp8-block")
ROWWISE = ("fp8-rowwise", "fp8-rowwise-hp")
KERNELS = {
    "mxfp8": ("1x32", "1x32", "1x32"),
    "nvfp4": ("1x16", "1x16", "1x16"),
    "fp8-block": ("1x128 @ 128x128", "1x128 @ 128x128", "1x128 @ 1x128"),
    "fp8-rowwise": ("row", "row", "row"),
    "fp8-rowwise-hp": ("row", "row", "emulated"),
    "fp8-current": ("tensor", "tensor", "tensor"),
    "fp8-delayed": ("tensor", "tensor", "tensor"),
}


@pytest.fixture
def has_every_kernel(monkeypatch):
    """A CPU whose `scaled_mm` has every kernel, in software."""
    monkeypatch.setattr(executor, "shortfall", lambda *_: None)
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", software.scaled_mm)


@pytest.mark.parametrize(("name", "kernels"), KERNELS.items())
def test_each_product_has_its_own_kernel(has_every_kernel, name, kernels):
    assert plan(formats_of(name), torch.float32, CPU) == kernels


def assert_close_as_sums(got: torch.Tensor, want: torch.Tensor, size: torch.Tensor) -> None:
    """Two sums of the same terms in float32 in another order, with scales applied elsewhere.

    Each term, product of scales and partial sum is rounded by 2**-24 of the sum of the magnitudes:
    `count + 8` roundings at most, of which those of the sum were counted twice.
    """
    magnitudes, count = size[0], size[1]
    bound = (2 * count + 8) * 2.0**-24 * magnitudes + 1e-30
    excess = (got - want).abs() - bound
    assert (excess <= 0).all(), f"{int((excess > 0).sum())} of {got.numel()} beyond the bound"


def test_assert_close_as_sums_can_fail():
    one = torch.ones(2, 2)
    assert_close_as_sums(one, one * (1 + 2.0**-23), (one, 4))
    with pytest.raises(AssertionError, match="1 of 4 beyond"):
        assert_close_as_sums(one, one + torch.tensor([[1e-3, 0], [0, 0]]), (one, 4))


def operands(m: int, n: int, k: int) -> list[torch.Tensor]:
    """With outliers, rows of very different size, and a block of zeros."""
    generator = torch.Generator().manual_seed(0)
    x, weight, g = (torch.randn(*shape, generator=generator) for shape in ((m, k), (n, k), (m, n)))
    x *= torch.logspace(-3, 3, m).unsqueeze(1)
    x[:, 0] *= 300
    weight[: n // 2, : k // 2] = 0
    g *= 2.0**-20
    return [x, weight, g]


SHAPES = [(32, 48, 64), (31, 40, 60), (1, 16, 16), (5, 1, 33), (130, 129, 257)]


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("name", [*BLOCKWISE, *ROWWISE])
def test_products_are_those_that_are_emulated(has_every_kernel, name, m, n, k):
    """Hardware in software, which reads scales where the cuBLAS guide says that they lie."""
    x, weight, g = operands(m, n, k)
    formats = formats_of(name)

    def results(by: str) -> list[torch.Tensor]:
        torch.manual_seed(3)  # of stochastic rounding
        product = lambda x, w: gemm.linear(x, w, formats=formats._replace(executor=by))
        return values_and_gradients(product, [x, weight], g)

    got, want = results("scaled_mm"), results("emulated")
    # Rounding may enlarge a value: twice the magnitudes hold for every format here.
    a, w, d = x.abs(), weight.abs(), g.abs()
    top = lambda t: torch.full_like(t, t.max())  # a block's share of its amax, in FP4
    sizes = [
        (4 * top(a) @ top(w).T, k),
        (4 * top(d) @ top(w), n),
        (4 * top(d).T @ top(a), m),
    ]
    if "hadamard" in str(formats):
        sizes = [(16 * size, count) for size, count in sizes]
    for one, other, size in zip(got, want, sizes, strict=True):
        assert one.shape == other.shape
        assert one.is_contiguous()
        assert_close_as_sums(one, other, size)
        if size[1] > 1 and other.abs().max() > 0:
            assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -0.0, 1e-38])
@pytest.mark.parametrize("where", ["one value", "the whole input", "the whole gradient"])
def test_values_at_the_ends_are_those_that_are_emulated(has_every_kernel, bad, where):
    """NaN and Inf reach the same results; zeros make zeros."""
    x, weight, g = (t.clone() for t in operands(33, 40, 70))
    if where == "one value":
        x[3, 5] = g[4, 7] = bad
    else:
        (x if where == "the whole input" else g).fill_(bad)
    for name in (*BLOCKWISE, *ROWWISE):
        found = []
        for by in ("scaled_mm", "emulated"):
            torch.manual_seed(3)
            product = partial(gemm.linear, formats=formats_of(name)._replace(executor=by))
            found.append(values_and_gradients(product, [x, weight], g))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one.isnan(), other.isnan()), name
            assert torch.equal(one.isinf(), other.isinf()), name
            finite = other.isfinite()
            slack = 1e-5 * other[finite].norm()
            assert (one[finite] - other[finite]).norm() <= slack, name


@pytest.mark.parametrize("shapes", [((33, 60), (3, 60, 40)), ((3, 33, 60), (60, 40))])
def test_matmul_with_a_matrix_on_either_side(has_every_kernel, shapes):
    """Turned around, the tiles of a weight come first."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in shapes)
    for name in (*BLOCKWISE, *ROWWISE):
        found = []
        for by in ("scaled_mm", "emulated"):
            torch.manual_seed(3)
            product = partial(gemm.matmul, formats=formats_of(name)._replace(executor=by))
            found.append(values_and_gradients(product, [a, b]))
        for one, other in zip(*found, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm(), name


def test_factors_multiply_each_result(has_every_kernel):
    """In the scales of a kernel, or after it where those are powers of two."""
    factors = tuple(torch.tensor(2.0**power) for power in (3, -2, 5))
    x, weight, g = operands(8, 16, 32)
    for name in (*BLOCKWISE, *ROWWISE):
        formats = formats_of(name)
        found = []
        for given in (NO_FACTORS, factors):
            torch.manual_seed(3)
            product = partial(gemm.linear, formats=formats, factors=given)
            found.append(values_and_gradients(product, [x, weight], g))
        for one, plain, factor in zip(found[1], found[0], factors, strict=True):
            torch.testing.assert_close(one, plain * factor, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("name", [*BLOCKWISE, *ROWWISE])
def test_autocast_is_a_model_in_bf16(has_every_kernel, name):
    """Results in BF16 and gradients in the dtype of the parameters; no value is rounded twice."""
    x, weight, g = operands(8, 16, 32)
    found = []
    for by in ("scaled_mm", "emulated"):
        formats = formats_of(name)._replace(executor=by)
        torch.manual_seed(3)
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        with torch.autocast("cpu", torch.bfloat16):
            output = gemm.linear(*leaves, formats=formats)
        assert output.dtype == torch.bfloat16
        output.backward(g.bfloat16())
        found.append([output.detach().float(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 2.0**-7 * other.norm()


@pytest.mark.parametrize("name", ROWWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "k"), [(31, 40, 60), (1, 16, 17), (32, 48, 64)])
def test_rows_run_on_the_cpu_in_earnest(name, dtype, m, n, k):
    """torch's own kernel; a result in BF16 is rounded once: by 2**-8 of itself, here and there."""
    x, weight, g = (t.to(dtype) for t in operands(m, n, k))
    formats = formats_of(name)
    product = lambda by: lambda x, w: gemm.linear(x, w, formats=formats._replace(executor=by))
    got = values_and_gradients(product("scaled_mm"), [x, weight], g)
    want = values_and_gradients(product("emulated"), [x, weight], g)
    slack = 1e-5 if dtype == torch.float32 else 2.0**-7
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        assert (one.float() - other.float()).norm() <= slack * other.float().norm()


def contiguous(x: torch.Tensor) -> torch.Tensor:
    """`Tensor.contiguous`, which a build without CUDA refuses on its tensors without data."""
    return x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("name", [*BLOCKWISE, *ROWWISE, "fp8-current", "fp8-delayed"])
@pytest.mark.parametrize(
    ("m", "n", "k", "weight_in_columns"),
    [(31, 40, 60, True), (1, 16, 16, False), (16, 1, 40, True), (130, 300, 257, False)],
)
def test_three_products_keep_the_rules_of_cuda(monkeypatch, name, m, n, k, weight_in_columns):
    """Called by hand: without a GPU no autograd engine takes a CUDA tensor."""
    monkeypatch.setattr(torch.Tensor, "contiguous", contiguous)
    kept = SimpleNamespace(needs_input_grad=[True] * 3)
    kept.save_for_backward = lambda *tensors: setattr(kept, "saved_tensors", tensors)
    with FakeTensorMode():
        draw = lambda *shape: torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        x, bias, grad = draw(m, k), draw(n), draw(m, n)
        weight = draw(k, n).t() if weight_in_columns else draw(n, k)
        formats = without_chance(formats_of(name))  # no hash without a GPU
        output = ScaledProduct.forward(kept, x, weight, bias, NO_FACTORS, formats, None, NOT_SHARED)
        grads = ScaledProduct.backward(kept, grad)
    for found, like in zip((output, *grads[:3]), (grad, x, weight, bias), strict=True):
        assert (found.shape, found.dtype) == (like.shape, torch.bfloat16)
    if name in KERNELS:
        assert kept.plan == KERNELS[name]


BREAKS = {
    "K=60": ("row", (32, 60), (48, 60), "divisible by 16"),
    "N=40": ("row", (32, 64), (40, 64), "divisible by 16"),
    "M=31": ("row", (31, 64), (48, 64), None),
    "column-major a": ("row", "t", (48, 64), "row_major"),
    "row-major b": ("row", (32, 64), "t", "col_major"),
    "K of blocks": ("1x128 @ 1x128", (32, 192), (48, 192), "must have shape"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_rules_of_cuda_are_checked_where_they_are_broken(what):
    """The kernel alone, without what `layout` does: the test above can fail."""
    kernel, a, b, message = BREAKS[what]
    with FakeTensorMode():
        fp8 = lambda shape: torch.empty(shape, dtype=torch.float8_e4m3fn, device="cuda")
        left = fp8((64, 32)).t() if a == "t" else fp8(a)
        right = fp8((64, 48)).t() if b == "t" else fp8(b)
        scale = lambda *shape: torch.empty(shape, device="cuda")
        scales = scale(left.shape[0], 1), scale(1, right.shape[0])
        if kernel != "row":
            scales = scale(2, left.shape[0]).t(), scale(2, right.shape[0]).t()
        call = lambda: scaled_mm_by(kernel, left, right, *scales, [], torch.bfloat16, False)
        if message is None:
            assert call().shape == (31, 48)
            return
        with pytest.raises((RuntimeError, ValueError), match=message):
            call()


def test_swizzle_is_demanded():
    """Of MX scales: their number is right only when filled up to tiles."""
    with FakeTensorMode():
        fp8 = lambda *shape: torch.empty(shape, dtype=torch.float8_e4m3fn, device="cuda")
        byte = lambda count: torch.empty(count, dtype=torch.uint8, device="cuda")
        arguments = (fp8(32, 64), fp8(48, 64))
        call = lambda *scales: scaled_mm_by("1x32", *arguments, *scales, [], torch.bfloat16, False)
        assert call(byte(512), byte(512)).shape == (32, 48)
        with pytest.raises(RuntimeError, match="scale_a must have 512"):
            call(byte(64), byte(96))


# 2026-11-29: torch 2.13's Dynamo instantiates the Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["fp8-rowwise-hp", "nvfp4"])
def test_compiled_is_eager(has_every_kernel, name):
    """One graph, in which the kernel is a node."""
    x, weight, g = operands(7, 17, 33)
    formats = without_chance(formats_of(name))
    formats = ProductFormats(*(x and x.replace(" hadamard=16", "") for x in formats))
    product = lambda x, w: gemm.linear(x, w, formats=formats)
    want = values_and_gradients(product, [x, weight], g)
    got = values_and_gradients(
        torch.compile(product, fullgraph=True, backend="aot_eager"), [x, weight], g
    )
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_operator_is_registered_as_torch_wants_it():
    left, right = (torch.zeros(n, 32).to(torch.float8_e4m3fn) for n in (4, 16))
    scales = torch.ones(4, 1), torch.ones(1, 16)
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    arguments = ("row", left, right, *scales, [], torch.float32, False)
    torch.library.opcheck(scaled_mm_by, arguments, test_utils=checks)


@pytest.mark.parametrize(("rows", "columns"), [(0, 16), (8, 0)])
def test_nothing_gives_zeros(has_every_kernel, rows, columns):
    for name in ("fp8-rowwise", "mxfp8", "fp8-block"):
        product = gemm.linear(
            torch.ones(rows, 32), torch.ones(columns, 32), formats=formats_of(name)
        )
        assert product.shape == (rows, columns)
    empty = gemm.linear(torch.ones(4, 0), torch.ones(16, 0), formats=formats_of("fp8-rowwise"))
    assert torch.equal(empty, torch.zeros(4, 16))


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        ("E5M2 current row", "E5M2 current row", "E5M2 by E5M2"),
        ("E5M2 current row", "E4M3FN current row", "E4M3FN alone"),
        ("E4M3FN current 128x128", "E4M3FN current 128x128", "beside 128x128"),
        ("E4M3FN current 1x64", "E4M3FN current 1x64", "no hardware has scales for"),
        ("E4M3FN", None, "8-bit formats, not E4M3FN by as is"),
        ("BF16", "E4M3FN", "8-bit formats, not BF16"),
        ("E4M3FN", "E4M3FNUZ", "E4M3FN by E4M3FNUZ"),
        ("MX_E2M1FN current", "MX_E2M1FN current", "MSLK"),
        ("MX_E3M2FN current", "MX_E4M3FN current", "six bits"),
        ("NVFP4 current", "E4M3FN", "multiplies NVFP4 current"),
        ("NVFP4 current", "MX_E4M3FN current", "multiplies NVFP4 current"),
        ("MX_E5M2 current", "MX_E5M2 current", "E5M2 by E5M2"),
    ],
)
def test_operands_without_a_kernel_say_why(left, right, reason):
    found = kernel_of(left, right)
    assert found.kernel is None
    assert reason in found.why
