"""Executors: the ways to multiply operands that are rounded, and which of them a device has.

    emulated    operands in the model's dtype; in FP32 it is the reference, bit-equal to the CPU's
                `torch._scaled_mm` with float32 output. With scales of their own, operands of a
                16-bit model are multiplied in FP32
    bf16        operands as BF16, which holds FP8 and BF16 values exactly; sums in FP32, results
                in BF16
    scaled_mm   8-bit operands in `torch._scaled_mm`, the product of FP8 hardware

None changes what a recipe promises: `bf16` is for recipes whose results are BF16, and for models
that are. They differ in the order of their sums, and where a bias is added to a result that is
rounded already.
"""

import time
from functools import lru_cache
from statistics import median
from typing import NamedTuple

import torch

from unitscale.formats import BF16, FloatFormat, torch_dtype
from unitscale.gemm.formats import ProductFormats
from unitscale.recipes import PerTensor

__all__ = [
    "Ability",
    "bf16_speed",
    "choose",
    "explain",
    "fp8_products",
    "obstacle",
    "quick_bf16_products",
]

HOPPER_OR_ADA = (8, 9)
AMPERE = (8, 0)


class Ability(NamedTuple):
    """Whether a device can do something, and what says so."""

    has: bool
    why: str


def fp8_products(device: torch.device) -> Ability:
    """Whether the device multiplies E4M3FN and E5M2 itself.

    Source: CUDA's cuBLASLt (FP8 from compute capability 8.9); ROCm, where MI300 has the FNUZ
    formats only.
    """
    if device.type != "cuda":
        return Ability(False, f"{device.type} has no FP8 products")
    return cuda_fp8_products(device.index)


@lru_cache
def cuda_fp8_products(index: int | None) -> Ability:
    """`fp8_products` of a CUDA or ROCm device."""
    name = torch.cuda.get_device_name(index)
    if torch.version.hip:
        chip = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return Ability(chip.startswith(("gfx95", "gfx12")), f"{name} is {chip}; needs gfx95 or 12")
    major, minor = torch.cuda.get_device_capability(index)
    why = f"{name} has compute capability {major}.{minor}; FP8 products need 8.9"
    return Ability((major, minor) >= HOPPER_OR_ADA, why)


def quick_bf16_products(device: torch.device) -> Ability:
    """Whether BF16 products are faster than FP32 ones, by the device's instructions.

    On a CPU with AVX-512 alone torch has BF16 products too, at half the speed of FP32.
    """
    if device.type == "cpu":
        return cpu_bf16_products()
    if device.type == "cuda":
        return cuda_bf16_products(device.index)
    return Ability(False, f"not known of {device.type}")


@lru_cache
def cpu_bf16_products() -> Ability:
    """`quick_bf16_products` of the CPU."""
    if not torch.backends.mkldnn.is_available():
        return Ability(False, "torch is built without oneDNN")
    found = []
    if torch.cpu._is_avx512_bf16_supported():
        found.append("avx512_bf16")
    if torch.cpu._is_amx_tile_supported():
        found.append("amx_tile")
    if torch.ops.mkldnn._is_mkldnn_acl_supported():
        found += ["bf16 of ARM"] * torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if found:
        return Ability(True, f"the CPU has {' and '.join(found)}")
    return Ability(False, "the CPU has neither avx512_bf16 nor AMX")


@lru_cache
def cuda_bf16_products(index: int | None) -> Ability:
    """`quick_bf16_products` of a CUDA or ROCm device."""
    major, minor = torch.cuda.get_device_capability(index)
    why = f"compute capability {major}.{minor}; BF16 products need 8.0"
    return Ability((major, minor) >= AMPERE, why)


def obstacle(
    executor: str, formats: ProductFormats, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why an executor cannot run these products of a model in `dtype` on `device`; None if it can.

    `torch._scaled_mm` runs on a CPU, too, in software.
    """
    operands = formats.operands
    elements = [operand.format for operand in operands]
    plain = [fmt for fmt in elements if isinstance(fmt, FloatFormat)]
    is_whole = len(plain) == len(formats.texts)
    if executor == "bf16":
        if not is_whole or not all(fmt.fits_in(BF16) for fmt in plain):
            return f"BF16 does not hold every value of {formats}"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"the model is {dtype}"
        if formats.result != "BF16" and dtype != torch.bfloat16:
            return f"its results are BF16, and the recipe's are {formats.result or dtype}"
        if formats.is_scaled or any(operand.transform for operand in operands):
            return "values times a scale of their own are not exact in BF16"
    if executor == "scaled_mm":
        if not is_whole or not all(fmt.bits == 8 and torch_dtype(fmt) for fmt in plain):
            return f"it multiplies 8-bit formats, not {formats}"
        pairs = zip(plain[::2], plain[1::2], strict=True)
        if any(left.name == right.name == "E5M2" for left, right in pairs):
            return "no hardware multiplies E5M2 by E5M2"
        if any(o.granularity != PerTensor() or not o.is_shared for o in operands):
            return "it has one scale for each tensor here"
        if formats.x_output != formats.x_grad_weight or formats.w_output != formats.w_grad_input:
            return "its two backward products take the operands of the forward product"
        if formats.g_grad_input != formats.g_grad_weight:
            return "its two backward products take one gradient"
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"the model is {dtype}"
        if formats.result not in (None, "BF16", "FP16", "FP32"):
            return f"it has no results in {formats.result}"
        if device.type != "cpu" and not fp8_products(device).has:
            return fp8_products(device).why
    return None


def choose(formats: ProductFormats, dtype: torch.dtype, device: torch.device) -> ProductFormats:
    """`formats` with "auto" replaced by the fastest executor that keeps the recipe's promise.

    Raises:
        ValueError: the executor that `formats` names cannot run these products here.
    """
    executor = formats.executor
    if executor == "auto":
        real = fp8_products(device).has and not obstacle("scaled_mm", formats, dtype, device)
        executor = "scaled_mm" if real else without_fp8(formats, dtype, device)
    elif reason := obstacle(executor, formats, dtype, device):
        raise ValueError(
            f"executor {executor!r} cannot run these products on {device}: {reason}; use 'auto'"
        )
    return formats._replace(executor=executor)


def without_fp8(formats: ProductFormats, dtype: torch.dtype, device: torch.device) -> str:
    """The executor for products that `torch._scaled_mm` does not have: batched ones, say."""
    quick = dtype == torch.float32 and quick_bf16_products(device).has
    return "bf16" if quick and not obstacle("bf16", formats, dtype, device) else "emulated"


def explain(formats: ProductFormats, dtype: torch.dtype, device: torch.device) -> Ability:
    """Whether "auto" finds something faster than emulated products here, and why."""
    settled = choose(formats._replace(executor="auto"), dtype, device)
    if settled.executor == "scaled_mm":
        return Ability(True, fp8_products(device).why)
    if settled.executor == "bf16":
        return Ability(True, quick_bf16_products(device).why)
    if dtype == torch.bfloat16:
        return Ability(False, "a BF16 model multiplies in BF16 as it is")
    real = obstacle("scaled_mm", formats, dtype, device) or fp8_products(device).why
    bf16 = obstacle("bf16", formats, dtype, device) or quick_bf16_products(device).why
    return Ability(False, f"scaled_mm: {real}; bf16: {bf16}")


def bf16_speed(device: torch.device, size: int = 512, rounds: int = 5) -> float:
    """How many times as fast as in FP32 a product of two square matrices is in BF16.

    The median over some pairs that take turns, in a few milliseconds each.
    """
    single = torch.randn(size, size, device=device)
    double = single.bfloat16()

    def seconds(x: torch.Tensor) -> float:
        begin = time.perf_counter()
        x @ x
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - begin

    ratios = [seconds(single) / seconds(double) for _ in range(rounds + 1)]
    return median(ratios[1:])  # the first call sets the library up
