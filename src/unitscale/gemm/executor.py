"""Executors: the ways to multiply operands that are rounded, and which of them a device has.

    emulated    operands in the model's dtype; in FP32 it is the reference, bit-equal to the CPU's
                `torch._scaled_mm` with float32 output. With scales of their own, operands of a
                16-bit model are multiplied in FP32
    bf16        operands as BF16, which holds FP8 and BF16 values exactly; sums in FP32, results
                in BF16
    scaled_mm   operands of 8 and 4 bits in `torch.nn.functional.scaled_mm`, the products of FP8
                and FP4 hardware; each of the three products is asked on its own, see `plan`

None changes what a recipe promises: `bf16` is for recipes whose results are BF16, and for models
that are. They differ in the order of their sums, and where a bias is added to a result that is
rounded already.
"""

import time
from functools import lru_cache
from statistics import median
from typing import Any, Literal, NamedTuple

import torch

from unitscale.formats import BF16, FORMATS, FloatFormat, torch_dtype
from unitscale.gemm.capability import (
    FNUZ,
    Ability,
    Kernel,
    element_names,
    kernel_of,
    machine_of,
    shortfall,
)
from unitscale.gemm.formats import ProductFormats
from unitscale.recipes.rule import PRODUCTS

__all__ = [
    "Ability",
    "Explained",
    "Plan",
    "bf16_speed",
    "choose",
    "explain",
    "explain_products",
    "fp8_products",
    "obstacle",
    "plan",
    "quick_bf16_products",
]

HOPPER_OR_ADA = (8, 9)
AMPERE = (8, 0)


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

    `scaled_mm` can if it has one of the three products: the others are emulated beside it, see
    `plan`. A CPU has it too, in software, with scales for tensors and rows.
    """
    if executor == "bf16":
        return obstacle_to_bf16(formats, dtype)
    if executor == "scaled_mm":
        reasons = [
            obstacle_to_kernel(*pair, formats.result, dtype, device) for pair in pairs(formats)
        ]
        return None if None in reasons else reasons[0]
    return None


def pairs(formats: ProductFormats) -> tuple[tuple[str | None, str | None], ...]:
    """The two operands of the output, of grad_input and of grad_weight."""
    return (
        (formats.x_output, formats.w_output),
        (formats.g_grad_input, formats.w_grad_input),
        (formats.g_grad_weight, formats.x_grad_weight),
    )


def obstacle_to_bf16(formats: ProductFormats, dtype: torch.dtype) -> str | None:
    """Why BF16 products would not keep the promise of these formats."""
    operands = formats.operands
    plain = [o.format for o in operands if isinstance(o.format, FloatFormat)]
    if formats.is_scaled or any(operand.transform for operand in operands):
        return "values times a scale of their own are not exact in BF16"
    if len(plain) != len(formats.texts) or not all(fmt.fits_in(BF16) for fmt in plain):
        return f"BF16 does not hold every value of {formats}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the model is {dtype}"
    if formats.result != "BF16" and dtype != torch.bfloat16:
        return f"its results are BF16, and the recipe's are {formats.result or dtype}"
    return None


def obstacle_to_kernel(
    left: str | None,
    right: str | None,
    result: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """Why `torch.nn.functional.scaled_mm` has no kernel for one product; None if it has.

    Args:
        left, right: the texts of its operands.
        result: the format of its result, by name; None is that of the model.
    """
    kernel, why = kernel_of(left, right)
    if kernel is None:
        return why
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the model is {dtype}"
    if result not in (None, "BF16", "FP16", "FP32"):
        return f"it has no results in {result}"
    out = dtype if result is None else torch_dtype(FORMATS[result])
    assert out is not None
    names = element_names(left, right)
    if device.type != "cpu" and not any(name in FNUZ for name in names):
        if not (fp8 := fp8_products(device)).has:
            return fp8.why
        if kernel == "tensor":
            return None
    return shortfall(kernel, names, out, machine_of(device))


Way = Kernel | Literal["bf16", "emulated"]


class Plan(NamedTuple):
    """What multiplies each of the three products of formats whose executor is "scaled_mm"."""

    output: Way
    grad_input: Way
    grad_weight: Way


def plan(formats: ProductFormats, dtype: torch.dtype, device: torch.device) -> Plan:
    """The kernel of each product, or what it gets instead where there is none.

    On a device that is not here the formats alone decide: tensors without data are asked for the
    rules of its kernels.
    """
    # Part by part: Dynamo of torch 2.13 hands a NamedTuple that was replaced in over in pieces.
    parts = [formats[index] for index in range(7)]
    return planned(*parts, dtype, device)


@torch.compiler.assume_constant_result
def planned(*parts: Any) -> Plan:
    """`plan` of the six texts, the result, the dtype and the device."""
    formats, dtype, device = ProductFormats(*parts[:7]), parts[7], parts[8]
    is_here = machine_of(device).kind != "absent"
    ways: list[Way] = []
    for left, right in pairs(formats):
        kernel = kernel_of(left, right).kernel
        if kernel is not None and not (
            is_here and obstacle_to_kernel(left, right, formats.result, dtype, device)
        ):
            ways.append(kernel)
            continue
        alone = ProductFormats(left, right, left, right, left, right, formats.result)
        ways.append(without_fp8(alone, dtype, device) if is_here else "emulated")
    return Plan(*ways)


def choose(formats: ProductFormats, dtype: torch.dtype, device: torch.device) -> ProductFormats:
    """`formats` with "auto" replaced by the fastest executor that keeps the recipe's promise.

    Raises:
        ValueError: the executor that `formats` names cannot run these products here.
    """
    executor = formats.executor
    if executor == "auto":
        real = device.type != "cpu" and not obstacle("scaled_mm", formats, dtype, device)
        executor = "scaled_mm" if real else without_fp8(formats, dtype, device)
    elif reason := obstacle(executor, formats, dtype, device):
        raise ValueError(
            f"executor {executor!r} cannot run these products on {device}: {reason}; use 'auto'"
        )
    return formats._replace(executor=executor)


def without_fp8(
    formats: ProductFormats, dtype: torch.dtype, device: torch.device
) -> Literal["bf16", "emulated"]:
    """The executor for products that `scaled_mm` does not have: batched ones, say."""
    quick = dtype == torch.float32 and quick_bf16_products(device).has
    return "bf16" if quick and not obstacle("bf16", formats, dtype, device) else "emulated"


class Explained(NamedTuple):
    """What multiplies one product, and why that.

    Args:
        product: "output", "grad_input" or "grad_weight".
        by: "scaled_mm" with its kernel, "bf16" or "emulated".
    """

    product: str
    by: str
    why: str


def explain(formats: ProductFormats, dtype: torch.dtype, device: torch.device) -> Ability:
    """Whether "auto" finds something faster than emulated products here, and why."""
    settled = choose(formats._replace(executor="auto"), dtype, device)
    if settled.executor == "scaled_mm":
        found = explain_products(settled, dtype, device)
        why = next(one.why for one in found if one.by.startswith("scaled_mm"))
        rest = [f"{one.product} {one.by}: {one.why}" for one in found if one.by in SLOW]
        return Ability(True, "; ".join([why, *rest]))
    if settled.executor == "bf16":
        return Ability(True, quick_bf16_products(device).why)
    if dtype == torch.bfloat16 and not formats.is_scaled:
        return Ability(False, "a BF16 model multiplies in BF16 as it is")
    real = obstacle("scaled_mm", formats, dtype, device) or fp8_products(device).why
    bf16 = obstacle("bf16", formats, dtype, device) or quick_bf16_products(device).why
    return Ability(False, f"scaled_mm: {real}; bf16: {bf16}")


SLOW = ("emulated", "bf16")


def explain_products(
    formats: ProductFormats, dtype: torch.dtype, device: torch.device
) -> list[Explained]:
    """What "auto" multiplies each of the three products by here, and why."""
    settled = choose(formats._replace(executor="auto"), dtype, device)
    if settled.executor != "scaled_mm":
        why = explain(formats, dtype, device).why
        return [Explained(product, settled.executor, why) for product in PRODUCTS]
    found = []
    ways = plan(settled, dtype, device)
    for product, way, pair in zip(PRODUCTS, ways, pairs(settled), strict=True):
        if way in SLOW:
            reason = obstacle_to_kernel(*pair, settled.result, dtype, device)
            found.append(Explained(product, way, f"scaled_mm: {reason}"))
        else:
            found.append(Explained(product, f"scaled_mm {way}", fp8_reason(pair, device)))
    return found


def fp8_reason(pair: tuple[str | None, str | None], device: torch.device) -> str:
    """What says that a device has a kernel for two operands."""
    if any(name in FNUZ for name in element_names(*pair)):
        machine = machine_of(device)
        return f"{machine.name} is {machine.chip}"
    return fp8_products(device).why


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
