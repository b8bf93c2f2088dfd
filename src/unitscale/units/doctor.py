"""What this machine can run: its devices and compilers, and the executor each recipe gets."""

import os
import platform
import shutil
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from unitscale.gemm import ProductFormats
from unitscale.gemm.executor import (
    bf16_speed,
    choose,
    explain,
    explain_products,
    fp8_products,
    quick_bf16_products,
)
from unitscale.graph.engine import compiler_is_disabled, errors_are_suppressed
from unitscale.recipes import RECIPES, Gemm, Recipe

__all__ = ["examine", "recipe_rows"]

SUPPRESS = "TORCHDYNAMO_SUPPRESS_ERRORS"
SWITCHES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", SUPPRESS)
"""Variables of the environment that decide whether torch.compile captures anything."""

MODELS = {"float32 model": torch.float32, "bfloat16 model": torch.bfloat16}


def examine() -> dict[str, Any]:
    """Everything, as JSON has it; a few seconds at most.

    `device` is the one that the recipes are judged for: the first GPU, or else the CPU.
    `bf16_products.speed` is measured, by `gemm.executor.bf16_speed`; what is chosen is chosen by
    the instructions alone, so that a busy moment changes nothing.
    """
    gpus = [examine_gpu(index) for index in range(torch.cuda.device_count())]
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    quick, fp8 = quick_bf16_products(device), fp8_products(device)
    return {
        "unitscale": version("unitscale"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": {
            "name": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx": torch.cpu._is_amx_tile_supported(),
        },
        "gpus": gpus,
        "device": str(device),
        "fp8_products": {"available": fp8.has, "why": fp8.why},
        "bf16_products": {
            "faster": quick.has,
            "why": quick.why,
            "speed": round(bf16_speed(device), 2),
        },
        "compilation": compilation(),
        "compilers": {"c++": cpp_compiler(), "triton": package_version("triton")},
        "recipes": recipe_rows(device),
    }


def recipe_rows(device: torch.device) -> list[dict[str, Any]]:
    """One row a recipe that rounds: the executor of its products in models of two dtypes.

    `why` is of a float32 model; `products` says the same of each of the three, for both dtypes.
    """
    return [recipe_row(recipe, device) for recipe in RECIPES.values() if recipe.rounds]


def recipe_row(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The executor for each dtype, and why it is that of a float32 model."""
    formats = ProductFormats.from_gemm(gemm_of_most(recipe), recipe.executor)
    chosen = {name: choose(formats, dtype, device).executor for name, dtype in MODELS.items()}
    products = {
        name: [one._asdict() for one in explain_products(formats, dtype, device)]
        for name, dtype in MODELS.items()
    }
    why = explain(formats, torch.float32, device).why
    return {"recipe": recipe.name, **chosen, "why": why, "products": products}


def gemm_of_most(recipe: Recipe) -> Gemm:
    """How a recipe multiplies hidden layers: `mus` has its read-out in BF16, by an earlier rule."""
    hidden = (r.gemm for r in recipe.rules if r.op in ("*", "linear") and r.path == "*" and r.gemm)
    return next(hidden, recipe.main)


def compilation() -> dict[str, Any]:
    """Whether torch.compile captures graphs in this process; a recipe cannot hold where not.

    `why` names what turned it off.
    """
    named = [name for name in SWITCHES if os.environ.get(name, "0") not in ("", "0")]
    if compiler_is_disabled():
        by = next((name for name in named if name != SUPPRESS), "torch._dynamo.config.disable")
        return {"enabled": False, "why": f"{by} turns torch.compile off"}
    if errors_are_suppressed():
        by = SUPPRESS if SUPPRESS in named else "torch._dynamo.config.suppress_errors"
        return {"enabled": True, "why": f"{by} runs what cannot be captured without a recipe"}
    return {"enabled": True, "why": "nothing turns torch.compile off"}


def examine_gpu(index: int) -> dict[str, Any]:
    """One GPU that torch sees."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "gigabytes": round(properties.total_memory / 1e9, 1),
        "fp8_products": fp8_products(torch.device("cuda", index)).has,
    }


def cpu_name() -> str:
    """As the system calls it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cpp_compiler() -> str | None:
    """The C++ compiler that inductor would call for the CPU; None if there is none."""
    usual = "clang++" if sys.platform == "darwin" else "cl" if os.name == "nt" else "g++"
    return shutil.which(os.environ.get("CXX", usual))


def package_version(name: str) -> str | None:
    """The version of an installed package."""
    return version(name) if find_spec(name) else None
