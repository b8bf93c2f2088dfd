"""`unitscale doctor`: what this machine can run, and why."""

import json as json_module
from typing import Any

from unitscale.cli.option import Json
from unitscale.cli.output import show


def doctor(json: Json = False) -> None:
    """Show what this machine can run: devices, compilers, and how each recipe is multiplied.

    `scaled_mm` is the product of FP8 hardware, `bf16` a BF16 product of FP8 values, which are exact
    in BF16; `emulated` rounds the operands and multiplies in the dtype of the model.
    """
    from unitscale.units.doctor import examine

    found = examine()
    if json:
        print(json_module.dumps(found, indent=2))
        return
    from unitscale.report import plain_table

    show(*lines(found), plain_table(found["recipes"]))


def lines(found: dict[str, Any]) -> list[str]:
    """What is not a table."""
    cpu, bf16, compilers = found["cpu"], found["bf16_products"], found["compilers"]
    gpus = [
        f"gpu {index}: {gpu['name']}, compute capability {gpu['compute_capability']}, "
        f"{gpu['gigabytes']} GB"
        for index, gpu in enumerate(found["gpus"])
    ]
    missing = "none found: use --inner eager, or install one"
    return [
        f"unitscale {found['unitscale']}, torch {found['torch']}, Python {found['python']}",
        f"cpu: {cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads, "
        f"{cpu['instructions']}{', avx512_bf16' * cpu['avx512_bf16']}{', AMX' * cpu['amx']}",
        *(gpus or ["gpu: none that torch sees"]),
        f"BF16 products on {found['device']}: {bf16['speed']} times as fast as FP32 "
        f"(measured just now); {bf16['why']}",
        f"FP8 products on {found['device']}: {found['fp8_products']['why']}",
        compilation(found["compilation"]),
        f"C++ compiler of inductor: {compilers['c++'] or missing}",
        f"triton, its compiler for a GPU: {compilers['triton'] or 'not installed'}",
        f"recipes on {found['device']}:",
    ]


def compilation(found: dict[str, Any]) -> str:
    """Whether a recipe can hold at all."""
    if not found["enabled"]:
        return (
            f"torch.compile: DISABLED: {found['why']}. No recipe holds in this process: every "
            "model trains in full precision. Unset it."
        )
    return f"torch.compile: on; {found['why']}"
