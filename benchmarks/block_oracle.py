"""Codecs against torchao's and microxcaling's own code, block by block; says where they differ.

    python benchmarks/block_oracle.py [--blocks 100000] [--torchao FOLDER] [--microxcaling FOLDER]

Neither is needed to use or test this library, and nothing of them is copied here. A peer that is
missing is skipped with one line. To get them, outside of this library's environment:

    pip install --no-deps --target FOLDER torchao==0.18.0
    git clone https://github.com/microsoft/microxcaling FOLDER

A peer's result counts as different when a decoded element differs as a number; NaN equals NaN.
Blocks are put into classes, and every class in which a peer differs is explained in `REASONS`.
"""

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unitscale import formats
from unitscale.formats import BlockFormat, Codec

RULES = ("floor", "rceil", "ceil", "even")
MX = [fmt for fmt in formats.BLOCK_FORMATS.values() if not fmt.has_tensor_scale]

TORCHAO_ELEMENTS = {
    "MX_E5M2": "torch.float8_e5m2",
    "MX_E4M3FN": "torch.float8_e4m3fn",
    "MX_E3M2FN": "DTYPE_FP6_E3M2",
    "MX_E2M3FN": "DTYPE_FP6_E2M3",
    "MX_E2M1FN": "torch.float4_e2m1fn_x2",
}
MICROXCALING_ELEMENTS = {
    "MX_E5M2": "fp8_e5m2",
    "MX_E4M3FN": "fp8_e4m3",
    "MX_E3M2FN": "fp6_e3m2",
    "MX_E2M3FN": "fp6_e2m3",
    "MX_E2M1FN": "fp4_e2m1",
}

Peer = Callable[[Tensor, Codec], Tensor]


def blocks(fmt: BlockFormat, count: int) -> dict[str, Tensor]:
    """Blocks by class: each a float32 tensor of one block a row.

    Gaussian blocks of one magnitude and of many; amaxes where a rule takes the next exponent, and
    their neighbors; amaxes that make subnormal scales; amaxes just below 2**127.
    """
    generator = torch.Generator().manual_seed(0)
    size = fmt.size

    def gaussian(low: int, high: int, count: int = count) -> Tensor:
        x = torch.randn(count, size, generator=generator)
        return x * torch.exp2(torch.randint(low, high, (count, 1), generator=generator).float())

    few = max(1, count // 10)
    edges = gaussian(-2, 3, few)
    edges[:, 0] = edges.abs().amax(1) * 1.1
    binade = torch.exp2(torch.arange(few).remainder(60).float() - 30)
    top = torch.tensor([1.0, 1.5, 1.75, 1.875, 1.9375, 2.0])
    top = torch.cat([top.nextafter(torch.tensor(0.0)), top, top.nextafter(torch.tensor(4.0))])
    edges = edges / edges[:, :1] * 0.9
    edges[:, 0] = top[torch.arange(few) % len(top)]
    special = gaussian(-2, 3, 30)
    special[torch.arange(30), torch.arange(30) % size] = torch.tensor(
        [torch.nan, torch.inf, -torch.inf]
    ).repeat(10)
    zeros = torch.zeros(2, size)
    zeros[1] = -0.0
    return {
        "alike": gaussian(0, 1),
        "spread": gaussian(-40, 40),
        "edges": edges * binade[:, None],
        "tiny": gaussian(-140, -112, few),
        "huge": gaussian(123, 126, few).clamp(-3.4e38, 3.4e38),
        "zero": zeros,
        "NaN or Inf": special,
    }


TINY = (
    "a scale of 2**-127 is stored, and elements are divided by 2**-126 (by 1 in rceil), so they "
    "decode to half of their value or to zero; the standard says P / X with the stored X, as ours"
)
INFINITE = (
    "NaN makes the block NaN as ours does; Inf saturates at a scale of its own; the standard "
    "leaves blocks with Inf or NaN to the implementation"
)
LOGARITHM = (
    "an integer from log2 in floating point, which rounds to it next to powers of two; the "
    "standard and cuBLAS mean the exact exponent, as ours"
)
TWO_LEVELS = (
    "block scales are at least 2**-6 (ours may be subnormal or 0) and amax / 6 / tensor_scale, "
    "rounded twice; elements are multiplied by a rounded reciprocal (ours are divided); Inf "
    "saturates. No standard says; the paper has reciprocals and no least scale"
)
REASONS = {
    ("torchao", "any", "tiny"): TINY,
    ("torchao", "any", "NaN or Inf"): INFINITE,
    ("torchao", "rceil", "edges"): LOGARITHM,
    ("microxcaling", "floor", "edges"): LOGARITHM,
}
"""By peer, rule and class of blocks: why it differs, and which follows the standard."""


def torchao_mx(module: Any) -> Peer:
    """`to_mx` and its own decoding of scales; elements decoded by our tables."""

    def quantized(x: Tensor, codec: Codec) -> Tensor:
        fmt = codec.format
        assert isinstance(fmt, BlockFormat)
        name = TORCHAO_ELEMENTS[fmt.name]
        element = getattr(torch, name[6:]) if name.startswith("torch.") else getattr(module, name)
        mode = getattr(module.ScaleCalculationMode, str(codec.rule).upper())
        scale, data = module.to_mx(x, element, fmt.size, mode)
        if data.dtype == torch.uint8:
            if fmt.element.bits == 4:  # two in a byte, the first in the low bits
                data = torch.stack([data & 15, data >> 4], -1).flatten(-2)
            data = formats.decode(data, fmt.element)
        values: Tensor = data.float().view(x.shape) * decoded_scale(scale)
        return values

    return quantized


def decoded_scale(scale: Tensor) -> Tensor:
    """E8M0 as the standard decodes it: 2**(code - 127), NaN for 255."""
    code = scale.view(torch.uint8).double()
    return torch.where(code == 255, torch.nan, torch.exp2(code - 127)).view(-1, 1)


def microxcaling_mx(module: Any) -> Peer:
    """`_quantize_mx`, elements to nearest even; it has the floor rule alone."""

    def quantized(x: Tensor, codec: Codec) -> Tensor:
        fmt = codec.format
        assert isinstance(fmt, BlockFormat)
        name = MICROXCALING_ELEMENTS[fmt.name]
        options = {"axes": [-1], "block_size": fmt.size, "round": "even"}
        values: Tensor = module._quantize_mx(x.clone(), 8, name, **options)
        return values

    return quantized


def differences(got: Tensor, expected: Tensor) -> Tensor:
    """Whether each block differs in some element."""
    got, expected = got.double(), expected.double()
    return ~((got == expected) | (got.isnan() & expected.isnan())).all(1)


def compare_mx(name: str, peer: Peer, rules: tuple[str, ...], count: int) -> int:
    """Print one line for each format, rule and class; the number of unexplained differences."""
    unexplained = 0
    for fmt in MX:
        for rule in rules:
            codec = Codec(format=fmt, power_of_two=rule)  # type: ignore[arg-type]
            for kind, x in blocks(fmt, count).items():
                e = codec.grid(x)
                assert e.scale is not None
                ours = e.data.double() * e.scale.double()
                is_other = differences(peer(x, codec), ours)
                unexplained += report(name, fmt, rule, kind, is_other)
    return unexplained


def compare_nvfp4(module: Any, count: int) -> int:
    """torchao's `nvfp4_quantize` at our tensor scale."""
    codec, unexplained = Codec(format=formats.NVFP4), 0
    for kind, x in blocks(formats.NVFP4, count).items():
        e = codec.grid(x)
        assert e.scale is not None
        assert e.tensor_scale is not None
        scale, packed = module.nvfp4_quantize(x, 16, e.tensor_scale)
        data = formats.decode(
            torch.stack([packed & 15, packed >> 4], -1).flatten(-2), formats.E2M1FN
        )
        theirs = data.view(x.shape) * (scale.float().view(-1, 1) * e.tensor_scale)
        unexplained += report(
            "torchao", formats.NVFP4, "", kind, differences(theirs, codec.round(x))
        )
    return unexplained


def report(name: str, fmt: BlockFormat, rule: str, kind: str, is_other: Tensor) -> int:
    """One line; 1 if something differs for which no reason is known."""
    share = f"{int(is_other.sum())} of {len(is_other)}"
    reason = ""
    if is_other.any():
        found = [REASONS.get((name, key, kind)) for key in (rule, "any")]
        reason = next((text for text in found if text), "")
        if fmt == formats.NVFP4:
            reason = TWO_LEVELS
        reason = reason or "NOT EXPLAINED"
    print(f"{name:13} {fmt!s:10} {rule:6} {kind:10} {share:>17} differ  {reason}".rstrip())
    return reason == "NOT EXPLAINED"


def load(name: str, module: str, folder: str | None) -> Any:
    """A peer's module, or None and one line."""
    if folder:
        sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        print(f"{name}: skipped, {error}; the top of this file says how to get it")
        return None


def main() -> int:
    """0 if every difference found has its reason."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--torchao", help="folder that holds the package")
    parser.add_argument("--microxcaling", help="folder that holds the clone")
    options = parser.parse_args()
    unexplained = 0
    package = "torchao.prototype.mx_formats"
    if mx := load("torchao", f"{package}.mx_tensor", options.torchao):
        unexplained += compare_mx("torchao", torchao_mx(mx), RULES, options.blocks)
        unexplained += compare_nvfp4(
            importlib.import_module(f"{package}.nvfp4_tensor"), options.blocks
        )
    if mx := load("microxcaling", "mx.mx_ops", options.microxcaling):
        unexplained += compare_mx("microxcaling", microxcaling_mx(mx), ("floor",), options.blocks)
    print(f"{unexplained} differences without a known reason")
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
