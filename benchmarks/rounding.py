"""What rounding costs, in copies: the time of `Tensor.copy_` of the same float32 over its time.

    python benchmarks/rounding.py [--quick] [--rounds 15] [--threads 1] [--json FILE]

16 M elements of a standard normal. Everything of ours writes into memory that exists, as the copy
does; peers return new tensors, from a malloc that keeps its memory. `differ` counts, of 4 M hard
inputs (all 16-bit patterns as float32, and random bits), the results of that path that are not
those of ml_dtypes' cast of the clamped input, for MX those of our eager code.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np
import paired
import torch
from torch import Tensor

from unitscale import formats
from unitscale.formats import E4M3FN, E5M2, MX_E4M3FN, NVFP4, FloatFormat

CASTS = {E4M3FN: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}
PATHS = {"eager": {"compiled": False}, "compiled": {"compiled": True}}

Cases = dict[str, Callable[[], object]]


def own(x: Tensor, fmt: FloatFormat) -> tuple[Cases, dict[str, str]]:
    """Our ways to round to one format, and how many results of each are wrong."""
    out, codes = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    cases: Cases = {}
    notes = {}
    hard = hard_inputs()
    expected = by_ml_dtypes(hard, fmt)
    third = torch.tensor(1 / 3)
    for path, options in PATHS.items():

        def nearest(options=options):
            return formats.round_to(x, fmt, out=out, **options)

        def scaled(options=options):
            return formats.round_to(x, fmt, out=out, inv_scale=third, **options)

        def stochastic(options=options):
            return formats.round_to(x, fmt, "stochastic", seed=1, out=out, **options)

        def packed(options=options):
            return formats.encode(x, fmt, out=codes, **options)

        y = formats.round_to(hard, fmt, **options)
        notes[f"{fmt} nearest, {path}"] = differ(y, expected)
        cases[f"{fmt} nearest, {path}"] = nearest
        y = formats.round_to(hard, fmt, inv_scale=third, **options)
        notes[f"{fmt} scaled and rounded, {path}"] = differ(y, by_ml_dtypes(hard * third, fmt))
        cases[f"{fmt} scaled and rounded, {path}"] = scaled
        y = formats.decode(formats.encode(hard, fmt, **options), fmt)
        notes[f"{fmt} rounded and packed, {path}"] = (
            differ(y, expected) + "; a quarter of the write"
        )
        cases[f"{fmt} rounded and packed, {path}"] = packed
        cases[f"{fmt} stochastic, {path}"] = stochastic
    y = hard.clone()
    formats.round_to(y, fmt, out=y, compiled=True)
    notes[f"{fmt} nearest in place, compiled"] = differ(y, expected)
    cases[f"{fmt} nearest in place, compiled"] = lambda: formats.round_to(
        out, fmt, out=out, compiled=True
    )
    return cases, notes


def own_blocks(x: Tensor) -> tuple[Cases, dict[str, str]]:
    """Ours to block formats."""
    out = torch.empty_like(x)
    cases: Cases = {}
    notes = {}
    hard = hard_inputs()
    given = {MX_E4M3FN: {}, NVFP4: {"tensor_scale": 4.5 / 2688}}
    for fmt, scale in given.items():
        eager = formats.round_to_blocks(hard, fmt, **scale)
        for path, options in PATHS.items():

            def rounded(fmt=fmt, options=scale | options):
                return formats.round_to_blocks(x, fmt, out=out, **options)

            name = f"{fmt} block {fmt.size} nearest, {path}"
            cases[name] = rounded
            y = formats.round_to_blocks(hard, fmt, **scale, **options)
            notes[name] = differ(y, eager) if path == "compiled" else ""
    cases[f"{MX_E4M3FN} block 32 stochastic, compiled"] = lambda: formats.round_to_blocks(
        x, MX_E4M3FN, -1, "stochastic", out, seed=1, compiled=True
    )
    return cases, notes


def peers(x: Tensor) -> tuple[Cases, dict[str, str]]:
    """Others that do the same, those that are installed; a note for each that is not."""
    cases: Cases = {}
    absent = {}
    cases[f"ml_dtypes {ml_dtypes.__version__}, E4M3FN and back"] = lambda: (
        x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    )
    cases["torch, clamp and cast to float8_e4m3fn and back"] = lambda: (
        x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    )
    if gfloat := load("gfloat", "gfloat, E4M3FN", "gfloat", absent):
        info = load("gfloat.formats", "gfloat, E4M3FN", "gfloat", absent).format_info_ocp_e4m3
        cases["gfloat, E4M3FN"] = lambda: gfloat.round_ndarray(info, x.numpy(), sat=True)
    name = "unit-scaling, FPFormat(4, 3)"
    if theirs := load("unit_scaling.formats", name, "unit-scaling", absent):
        for rounding in ("nearest", "stochastic"):
            other = theirs.FPFormat(4, 3, rounding)
            cases[f"{name} {rounding}"] = lambda other=other: other.quantise(x)
    name = "microxcaling, MX E4M3 block 32"
    source = "git+https://github.com/microsoft/microxcaling"
    if theirs := load("mx", name, source, absent):
        specs = theirs.MxSpecs()
        specs["scale_bits"], specs["block_size"] = 8, 32
        cases[name] = lambda: theirs.mx_ops.quantize_mx_op(
            x.view(-1, 32), specs, elem_format="fp8_e4m3", axes=[-1], round="even"
        )
    return cases, absent


def load(module: str, case: str, source: str, absent: dict[str, str]) -> Any:
    """A peer's module, or None and a note of why not."""
    try:
        return import_module(module)
    except ImportError as error:
        absent[case] = f"absent ({error}); pip install {source}"
        return None


def hard_inputs() -> Tensor:
    """Every float16 and bfloat16 value and random float32 bits, 4 M in all; no NaN, no Inf.

    Magnitudes from 2**64 on are left out: times a third they are as far past every format.
    """
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    parts = [patterns.view(dtype).float() for dtype in (torch.float16, torch.bfloat16)]
    generator = torch.Generator().manual_seed(0)
    missing = 2**22 - sum(part.numel() for part in parts)
    bits = torch.randint(-(2**31), 2**31, (missing,), dtype=torch.int64, generator=generator)
    x = torch.cat([*parts, bits.to(torch.int32).view(torch.float32)])
    return torch.where(x.abs() < 2.0**64, x, 1.0)


def by_ml_dtypes(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Its cast of the clamped x, and back."""
    values = x.clamp(-fmt.max, fmt.max).numpy().astype(CASTS[fmt]).astype(np.float32)
    return torch.from_numpy(values)


def differ(y: Tensor, expected: Tensor) -> str:
    """How many bits patterns are not the expected ones."""
    return f"{(y.view(torch.int32) != expected.view(torch.int32)).sum().item()} differ"


def main() -> None:
    """Measure and print."""
    options = paired.arguments(__doc__).parse_args()
    paired.steady_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(2**20 if options.quick else 2**24)
    target = torch.empty_like(x)
    cases: Cases = {}
    notes: dict[str, str] = {}
    for more, their_notes in (own(x, E4M3FN), own(x, E5M2), own_blocks(x)):
        cases |= more
        notes |= their_notes
    others, absent = peers(x)
    rows = paired.compare(
        lambda: target.copy_(x),
        {"copy (the same again)": lambda: target.copy_(x)} | cases | others,
        "of copy",
        options.rounds,
        notes,
    )
    rows += [paired.Row(case=name, measure="of copy", note=note) for name, note in absent.items()]
    paired.report(f"Rounding, {x.numel() // 2**20} M float32", rows, options.json)


if __name__ == "__main__":
    main()
