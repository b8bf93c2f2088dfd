"""What each recipe keeps for backward: one copy of a tensor, the one that backward takes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gemm.edges import saved_bytes
from gemm.test_six_operands import FORMATS
from unitscale import gemm
from unitscale.formats import BlockFormat, Codec
from unitscale.gemm import ProductFormats
from unitscale.gemm.operand import Use, encode, pack, take
from unitscale.recipes import parse_operand

M, N, K = 40, 48, 136


def bytes_of(text: str, shape: tuple[int, int]) -> int:
    """Bytes of an operand's data, whose contraction is the last axis, and of its scales.

    torch holds each value of fewer than eight bits in a byte.
    """
    operand = parse_operand(text)
    rows, columns = shape
    if operand.transform is not None:
        columns = -(-columns // operand.transform.size) * operand.transform.size
    fmt = operand.format
    bits = fmt.element.bits if isinstance(fmt, BlockFormat) else fmt.bits
    data = rows * columns * max(1, bits // 8)
    name = type(operand.scale).__name__
    if name in ("Cast", "Unit") and not isinstance(fmt, BlockFormat):
        return data
    if name in ("Constant", "Delayed"):
        return data + 4
    scales = math.prod(
        Codec(format=fmt, granularity=operand.granularity).groups.scale_shape((rows, columns))
    )
    is_block = isinstance(fmt, BlockFormat)
    return data + scales * (1 if is_block else 4) + 4 * (is_block and fmt.has_tensor_scale)


@pytest.mark.parametrize("name", FORMATS)
def test_one_copy_of_each_tensor_is_kept_in_as_few_bytes_as_torch_has(name):
    formats = FORMATS[name]
    x, weight = torch.randn(M, K, requires_grad=True), torch.randn(N, K, requires_grad=True)
    saved = saved_bytes(lambda: gemm.linear(x, weight, formats=formats))
    assert saved == bytes_of(formats.x_grad_weight, (K, M)) + bytes_of(formats.w_grad_input, (K, N))


def test_the_sizes_of_the_test_above_are_those_of_the_formats():
    """Typed by hand, for two recipes."""
    assert bytes_of("E4M3FN current row", (K, M)) == K * M + 4 * K
    assert bytes_of("MX_E4M3FN current floor", (K, M)) == K * M + K * 2  # 40 are two blocks
    assert bytes_of("NVFP4 current hadamard=16", (K, M)) == K * 48 + K * 3 + 4  # 40 is turned in 48
    assert bytes_of("BF16", (K, M)) == 2 * K * M


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("which", [0, 1], ids=["x", "weight"])
def test_an_operand_is_kept_for_the_gradient_of_the_other_alone(name, which):
    formats = FORMATS[name]
    operands = [torch.randn(M, K), torch.randn(N, K)]
    operands[which].requires_grad_()
    saved = saved_bytes(lambda: gemm.linear(*operands, formats=formats))
    kept = [(formats.w_grad_input, (K, N)), (formats.x_grad_weight, (K, M))][which]
    assert saved == bytes_of(*kept)


def saved_tensors(y: Tensor) -> list[Tensor]:
    return [x for x in y.grad_fn.saved_tensors if x is not None]


E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("fp8-rowwise", {E4M3, torch.float32}),
        ("fp8-rowwise-hp", {E4M3, torch.float32, torch.bfloat16}),
        ("fp8-block", {E4M3, torch.float32}),
        ("mxfp8", {E4M3, E8M0}),
        ("mxfp6", {torch.uint8, E8M0}),
        ("mxfp4", {torch.uint8, E8M0}),
        ("nvfp4", {torch.uint8, E4M3, torch.float32}),
        ("fp8-amax-fnuz", {torch.float8_e4m3fnuz, torch.float32}),
    ],
)
def test_data_and_scales_are_held_in_their_own_dtypes(name, dtypes):
    x, weight = torch.randn(M, K, requires_grad=True), torch.randn(N, K, requires_grad=True)
    y = gemm.linear(x, weight, formats=FORMATS[name])
    assert {t.dtype for t in saved_tensors(y)} == dtypes


def test_a_shared_tensor_is_one_copy_of_the_same_bits():
    formats = FORMATS["fp8-block"]
    assert formats.w_output == formats.w_grad_input  # tiles: the same both ways
    x, weight = torch.randn(M, K, requires_grad=True), torch.randn(N, K, requires_grad=True)
    y = gemm.linear(x, weight, formats=formats)
    use = Use(formats.w_output)
    own = pack(encode(weight, use), use)
    kept = [t for t in saved_tensors(y) if t.shape == (N, K)]
    assert len(kept) == 1
    assert torch.equal(kept[0].view(torch.uint8), own.data.view(torch.uint8))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("along", [-1, -2])
def test_what_is_packed_is_taken_out_again_to_the_bit(name, along):
    """Zeros of a sign of their own, odd lengths, and values that saturate or are flushed."""
    x = torch.randn(19, 37) * 10.0 ** torch.randint(-6, 4, (19, 37))
    x[0], x[:, 0] = 0.0, -0.0
    for text in {*FORMATS[name].texts}:
        use = Use(text, along)
        torch.manual_seed(3)
        found = encode(x, use)
        values = take(found, use, torch.float32)
        again = take(pack(found, use), use, torch.float32)
        assert torch.equal(again, values)
        assert values.isfinite().all() or "FP16" in text


@pytest.mark.parametrize("executor", ["emulated", "scaled_mm"])
@pytest.mark.parametrize("name", ["linear", "matmul", "addmm"])
def test_shared_codes_and_a_weight_that_is_rounded_again_change_no_bit(
    name: str, executor: str
) -> None:
    """And hold nothing of their own: the codes are another's, the weight is a parameter."""
    formats = ProductFormats.of("E4M3FN current", "E5M2 current", executor=executor)
    torch.manual_seed(0)
    x = torch.randn(32, 32).to(torch.bfloat16)
    weight, grad = torch.randn(32, 32).to(torch.bfloat16), torch.randn(32, 32).to(torch.bfloat16)
    found = pack(encode(x, Use("E4M3FN current")), Use("E4M3FN current"))
    codes = (found.data, found.scale)

    def run(**sharing: Any) -> tuple[list[Tensor], set[int]]:
        given = [t.clone().requires_grad_() for t in (x, weight)]
        held: set[int] = set()

        def note(t: Tensor) -> Tensor:
            held.add(t.untyped_storage().data_ptr())
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            if name == "addmm":
                y = gemm.addmm(torch.zeros(32), *given, formats=formats, **sharing)
            else:
                y = getattr(gemm, name)(*given, formats=formats, **sharing)
        grads = torch.autograd.grad(y, given, grad.to(y.dtype))
        own = {t.untyped_storage().data_ptr() for t in (given[1], *codes) if t is not None}
        return [y.detach(), *grads], held - own

    want, _ = run()
    got, more = run(codes=codes, recodes=True)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    assert more == set()


def test_sharing_is_refused_where_there_is_no_matrix() -> None:
    formats = ProductFormats.of("E4M3FN current", "E5M2 current")
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\) and \(2, 4, 4\)"):
        gemm.matmul(torch.ones(2, 4, 4), torch.ones(2, 4, 4), formats=formats, recodes=True)
