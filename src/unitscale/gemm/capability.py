"""Which kernel of `torch.nn.functional.scaled_mm` two operands take, and which devices have it.

    kernel            operands                    scales                     devices
    tensor            8 bits by 8 bits            float32, one a tensor      CUDA 8.9, gfx94/95/12
    row               E4M3FN by E4M3FN            float32, one a row         CUDA 8.9, gfx95/12
    1x32              MX_E4M3FN, MX_E5M2          E8M0, 32 terms share one   CUDA 10.0
    1x16              NVFP4                       E4M3FN, and one a tensor   CUDA 10.0
    1x128, 128x128    8 bits, not tile by tile    float32, 128 terms or tile CUDA 9.x alone

A CPU has the first two, in software; the last needs CUDA 12.9, the two before it 12.8. One
operand with a scale for its tensor beside one with a scale for each row counts as rows: each row
has the tensor's scale.

Sources: torch 2.13, aten/src/ATen/native/cuda/ScaledBlas.cpp and ScaledBlasDeviceUtils.cpp, and
test/test_matmul_cuda.py (rows from compute capability 8.9, by CUTLASS with BF16 results; float32
results by cuBLAS 12.9 on 9.x); the cuBLAS guide, "Narrow precision data types usage" (FP8 from 8.9,
block scales from 10.0). None of it was tried on a device: see `gemm.kernel`.
"""

from functools import cache, lru_cache
from typing import Literal, NamedTuple

import torch

from unitscale.formats import NVFP4, BlockFormat, FloatFormat, torch_dtype
from unitscale.formats.granularity import PerAxis, PerBlock, PerTensor, PerTile
from unitscale.recipes import Operand, parse_operand

__all__ = ["ROWS", "Ability", "Kernel", "Machine", "kernel_of", "machine_of", "shortfall"]

Kernel = Literal[
    "tensor", "row", "1x32", "1x16", "1x128 @ 1x128", "1x128 @ 128x128", "128x128 @ 1x128"
]
ROWS: tuple[Kernel, ...] = ("tensor", "row")
"""The kernels that a CPU has, too."""

ADA, HOPPER, BLACKWELL = (8, 9), (9, 0), (10, 0)
CUDA_WITH_BLOCKS, CUDA_WITH_ROWS = (12, 8), (12, 9)
FNUZ = ("E4M3FNUZ", "E5M2FNUZ")


class Ability(NamedTuple):
    """Whether a device can do something, and what says so."""

    has: bool
    why: str


class Machine(NamedTuple):
    """What decides which kernels a device has.

    Args:
        name: as its driver calls it.
        kind: "cuda", "rocm", "absent" (torch sees no such device), or the type of another device.
        capability: of a CUDA device, as (8, 9).
        chip: of a ROCm device, as gfx942.
        cuda: the version of CUDA that torch is built with.
    """

    name: str
    kind: str
    capability: tuple[int, int] = (0, 0)
    chip: str = ""
    cuda: tuple[int, int] = (0, 0)


def machine_of(device: torch.device) -> Machine:
    """What decides which kernels a device has."""
    if device.type != "cuda":
        return Machine(device.type, device.type)
    return gpu(device.index) if torch.cuda.is_available() else Machine(str(device), "absent")


@lru_cache
def gpu(index: int | None) -> Machine:
    """`machine_of` a GPU of CUDA or ROCm."""
    name = torch.cuda.get_device_name(index)
    if torch.version.hip:
        chip = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return Machine(name, "rocm", chip=chip)
    major, minor = (int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return Machine(
        name, "cuda", capability=torch.cuda.get_device_capability(index), cuda=(major, minor)
    )


class Match(NamedTuple):
    """The kernel for two operands, or why there is none."""

    kernel: Kernel | None
    why: str = ""


@cache
def kernel_of(left: str | None, right: str | None) -> Match:
    """The kernel that multiplies two operands, by their texts, wherever it may run."""
    texts = f"{left or 'as is'} by {right or 'as is'}"
    if left is None or right is None:
        return Match(None, f"it multiplies 8-bit formats, not {texts}")
    a, b = parse_operand(left), parse_operand(right)
    if a.format is None or b.format is None:
        return Match(None, f"it multiplies 8-bit formats, not {texts}")
    if isinstance(a.format, BlockFormat) or isinstance(b.format, BlockFormat):
        return block_kernel(a, b, texts)
    if not all(fmt.bits == 8 and torch_dtype(fmt) for fmt in (a.format, b.format)):
        return Match(None, f"it multiplies 8-bit formats, not {texts}")
    if a.format.name == b.format.name == "E5M2":
        return Match(None, "no hardware multiplies E5M2 by E5M2")
    if (a.format.name in FNUZ) != (b.format.name in FNUZ):
        return Match(None, f"no hardware multiplies {a.format} by {b.format}")
    kernel = KERNELS.get((groups(a), groups(b)))
    if kernel is None:
        return Match(None, f"no hardware has scales for {groups(a)} beside {groups(b)}")
    if kernel == "row" and not a.format.name == b.format.name == "E4M3FN":
        return Match(None, f"with a scale for each row it multiplies E4M3FN alone, not {texts}")
    return Match(kernel)


KERNELS: dict[tuple[str, str], Kernel] = {
    ("tensor", "tensor"): "tensor",
    ("row", "row"): "row",
    ("row", "tensor"): "row",
    ("tensor", "row"): "row",
    ("1x128", "1x128"): "1x128 @ 1x128",
    ("1x128", "128x128"): "1x128 @ 128x128",
    ("128x128", "1x128"): "128x128 @ 1x128",
}


def groups(operand: Operand) -> str:
    """What shares a scale, as `KERNELS` says it."""
    known = (PerTensor(), PerAxis(), PerBlock(128), PerTile(128, 128))
    return str(operand.granularity) if operand.granularity in known else repr(operand.granularity)


def block_kernel(a: Operand, b: Operand, texts: str) -> Match:
    """`kernel_of` two operands of which one has a block format; a tile is rows of blocks."""
    if a.format == b.format == NVFP4:
        return Match("1x16")
    if not (isinstance(a.format, BlockFormat) and isinstance(b.format, BlockFormat)):
        return Match(None, f"no hardware multiplies {texts}")
    elements = a.format.element, b.format.element
    if a.format.size != b.format.size or NVFP4 in (a.format, b.format):
        return Match(None, f"no hardware multiplies {texts}")
    if any(element.bits == 6 for element in elements):
        return Match(None, "torch has no dtype of six bits")
    if any(element.bits == 4 for element in elements):
        return Match(None, "cuBLAS has no MXFP4; torch's own kernel needs a build with MSLK")
    if elements[0].name == elements[1].name == "E5M2":
        return Match(None, "no hardware multiplies E5M2 by E5M2")
    return Match("1x32")


def shortfall(
    kernel: Kernel, formats: tuple[str, ...], out: torch.dtype, machine: Machine
) -> str | None:
    """Why a device has not this kernel for these results; None if it has.

    Args:
        formats: the names of the operands' element formats.
    """
    if machine.kind == "cpu":
        return None if kernel in ROWS else "a CPU has scales for tensors and rows alone"
    if machine.kind == "absent":
        return f"torch sees no {machine.name}"
    if machine.kind == "rocm":
        return shortfall_of_rocm(kernel, formats, out, machine)
    if machine.kind != "cuda":
        return f"{machine.name} has no FP8 products"
    if set(formats) & set(FNUZ):
        return f"{machine.name} has no FNUZ formats; MI300 has"
    least = BLACKWELL if kernel in ("1x32", "1x16") else ADA if kernel in ROWS else HOPPER
    has = f"{machine.name} has compute capability {dotted(machine.capability)}"
    if machine.capability < least:
        return f"{has}; {described(kernel)} need {dotted(least)}"
    if least == BLACKWELL and machine.cuda < CUDA_WITH_BLOCKS:
        return f"{described(kernel)} need CUDA 12.8; torch is built with {dotted(machine.cuda)}"
    is_hopper = machine.capability[0] == HOPPER[0]
    has_rows = machine.cuda >= CUDA_WITH_ROWS
    if kernel.count("128"):
        if not is_hopper:
            return f"{has}; {described(kernel)} are for 9.x alone"
        if not has_rows:
            return f"{described(kernel)} need CUDA 12.9; torch is built with {dotted(machine.cuda)}"
    if kernel == "row" and out != torch.bfloat16 and not (is_hopper and has_rows):
        return f"with scales for rows its results are BF16 here, and the recipe's are {out}"
    return None


def shortfall_of_rocm(
    kernel: Kernel, formats: tuple[str, ...], out: torch.dtype, machine: Machine
) -> str | None:
    """`shortfall` of an AMD GPU: MI300 (gfx94) has the FNUZ formats, later ones the others."""
    has = f"{machine.name} is {machine.chip}"
    chips = ("gfx94",) if set(formats) & set(FNUZ) else ("gfx95", "gfx12")
    if not machine.chip.startswith(chips):
        return f"{has}; {' and '.join(sorted(set(formats)))} need {' or '.join(chips)}"
    if kernel == "row" and out != torch.bfloat16:
        return f"with scales for rows its results are BF16 here, and the recipe's are {out}"
    if kernel == "1x32":
        return f"{has}; the layout of its MX scales changes with ROCm's version, and is not tried"
    if kernel not in ROWS:
        return f"{has}; torch has no {described(kernel)} on ROCm"
    return None


def described(kernel: Kernel) -> str:
    """The products of a kernel in words."""
    words = {
        "tensor": "FP8 products",
        "row": "FP8 products with scales for rows",
        "1x32": "MX products",
        "1x16": "NVFP4 products",
    }
    return words.get(kernel, f"products with scales for {kernel}")


def dotted(version: tuple[int, int]) -> str:
    """As 8.9 is written."""
    return ".".join(map(str, version))


def element_names(*texts: str | None) -> tuple[str, ...]:
    """The element formats of operands, by name."""
    found = (parse_operand(text).format for text in texts if text is not None)
    return tuple(
        fmt.element.name if isinstance(fmt, BlockFormat) else fmt.name
        for fmt in found
        if isinstance(fmt, BlockFormat | FloatFormat)
    )
