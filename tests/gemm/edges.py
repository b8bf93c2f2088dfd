"""What the tests of products compare with: the plain op with rounding on its edges."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unitscale.formats import FORMATS, Encoded, round_to
from unitscale.gemm import ProductFormats, rounded
from unitscale.gemm.operand import Use, encode, pack

PRODUCT_FORMATS = {
    "fp8": ProductFormats.of("E4M3FN", "E5M2"),
    "fp8-e4m3": ProductFormats.of("E4M3FN", "E4M3FN"),
    "fp8-current": ProductFormats.of("E4M3FN current", "E5M2 current"),
    "fp16": ProductFormats.of("FP16", "FP16", "FP16"),
    "bf16": ProductFormats.of("BF16", "BF16", "BF16"),
    "forward only": ProductFormats.of("E4M3FN"),
    "backward only": ProductFormats.of(None, "E5M2"),
    "fp8 by bf16": ProductFormats.of("E4M3FN", "E5M2", "BF16", executor="bf16"),
    "bf16 by bf16": ProductFormats.of("BF16", "BF16", "BF16", executor="bf16"),
    "fp8 by scaled_mm": ProductFormats.of("E4M3FN", "E5M2", executor="scaled_mm"),
    "fp8-bf16 by scaled_mm": ProductFormats.of("E4M3FN", "E5M2", "BF16", executor="scaled_mm"),
    "fp8-current by scaled_mm": ProductFormats.of(
        "E4M3FN current", "E5M2 current", executor="scaled_mm"
    ),
}

Product = Callable[..., Tensor]


def held(x: Tensor, text: str | None) -> Encoded:
    """A tensor as a product keeps it for backward, by the text of its operand."""
    return pack(encode(x, Use(text)), Use(text))


def product_at_edges(op: Product, formats: ProductFormats, *operands: Tensor) -> Tensor:
    """`op` on rounded operands, its result rounded; autograd sees to the other two products."""
    taken = (
        rounded(x, text, formats.result)
        for x, text in zip(operands, (formats.x_output, *[formats.w_output] * 2), strict=False)
    )
    return rounded(op(*taken), formats.result, formats.g_grad_input)


def values_and_gradients(
    product: Product, operands: list[Tensor], grad: Tensor | None = None
) -> list[Tensor]:
    """The output and every operand's gradient, for `grad` or a random gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in operands]
    output = product(*leaves)
    if grad is None:
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(output.shape, generator=generator).to(output.dtype)
    output.backward(grad)
    return [output.detach(), *(x.grad for x in leaves)]


def assert_same_bits(got: list[Tensor], want: list[Tensor]) -> None:
    """Equal dtypes, shapes and values; NaN equals NaN."""
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(
            a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=i: f"{i}: {m}"
        )


def assert_on_grid(x: Tensor, format_name: str) -> None:
    """Every value is one of the format, and `x` is not all zero."""
    assert x.count_nonzero() > 0
    assert torch.equal(round_to(x, FORMATS[format_name]), x), f"not all are {format_name}"


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for backward while `run` runs, each memory counted once."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        alive = run()
    del alive
    return sum(kept.values())
