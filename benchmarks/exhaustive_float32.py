"""Round all 2**32 float32 values to E4M3FN and E5M2, compare each with ml_dtypes, report the time.

    python benchmarks/exhaustive_float32.py           # 4 passes of 2**32 values: many minutes
    python benchmarks/exhaustive_float32.py --small   # 16-bit values into every small format: 1 s

Exits with 1 if a value differs. ml_dtypes has no saturating cast to FP8, so its input is clamped
first; 0 differences means the same number and the same sign of zero, and NaN where it has NaN.
"""

import argparse
import platform
import time

import ml_dtypes
import numpy as np
import torch

from unitscale.formats import E4M3FN, E5M2, E8M0FNU, FORMATS, FloatFormat, round_to

CHUNK = 2**22

ML_DTYPES = {
    E5M2: ml_dtypes.float8_e5m2,
    E4M3FN: ml_dtypes.float8_e4m3fn,
    FORMATS["E4M3"]: ml_dtypes.float8_e4m3,
    FORMATS["E3M4"]: ml_dtypes.float8_e3m4,
    FORMATS["E5M2FNUZ"]: ml_dtypes.float8_e5m2fnuz,
    FORMATS["E4M3FNUZ"]: ml_dtypes.float8_e4m3fnuz,
    FORMATS["E4M3B11FNUZ"]: ml_dtypes.float8_e4m3b11fnuz,
    FORMATS["E3M2FN"]: ml_dtypes.float6_e3m2fn,
    FORMATS["E2M3FN"]: ml_dtypes.float6_e2m3fn,
    FORMATS["E2M1FN"]: ml_dtypes.float4_e2m1fn,
    E8M0FNU: ml_dtypes.float8_e8m0fnu,
}


def mismatches(x: torch.Tensor, fmt: FloatFormat, *, saturate: bool) -> np.ndarray:
    """Where `round_to` of float32 x and ml_dtypes' cast of it differ."""
    given = x.numpy()
    if saturate:
        low = -fmt.max if fmt.has_zero else fmt.min_subnormal
        given = np.where((given < 0) & (not fmt.is_signed), np.nan, given.clip(low, fmt.max))
    with np.errstate(all="ignore"):
        expected = given.astype(ML_DTYPES[fmt]).astype(np.float32)
    if not fmt.has_nan:  # ml_dtypes makes a zero of NaN
        expected = np.where(np.isnan(given), np.float32(np.nan), expected)
    actual = round_to(x, fmt, saturate=saturate).numpy()
    is_same = actual.view(np.int32) == expected.view(np.int32)  # the sign of zero counts
    return ~is_same & ~(np.isnan(actual) & np.isnan(expected))


def check_all(fmt: FloatFormat, *, saturate: bool, step: int = 1) -> int:
    """Every `step`-th of the 2**32 float32 patterns."""
    start, seconds_rounding, count, total = time.perf_counter(), 0.0, 0, 0
    for first in range(-(2**31), 2**31, CHUNK * step):
        last = min(first + CHUNK * step, 2**31)
        x = torch.arange(first, last, step).to(torch.int32).view(torch.float32)
        begin = time.perf_counter()
        round_to(x, fmt, saturate=saturate)
        seconds_rounding += time.perf_counter() - begin
        count += int(mismatches(x, fmt, saturate=saturate).sum())
        total += x.numel()
    mode = "saturating" if saturate else "overflowing"
    print(
        f"{fmt.name:12} {mode:12} {total:>13,} float32 values  {count:>6,} mismatches  "
        f"{time.perf_counter() - start:7.1f} s, {seconds_rounding:6.1f} s of it one round_to",
        flush=True,
    )
    return count


def check_small() -> int:
    """All bfloat16 and float16 values into every format of 8 bits and fewer."""
    unexplained = 0
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    print(f"{'format':12} {'inputs':>9} {'mismatches with ml_dtypes':>26}")
    for fmt in ML_DTYPES:
        inputs = [patterns.view(dtype).float() for dtype in (torch.bfloat16, torch.float16)]
        x = torch.cat(inputs)
        bad = np.stack([mismatches(x, fmt, saturate=saturate) for saturate in (True, False)])
        note = ""
        if fmt == E8M0FNU:
            known = ((x > 2.0**-127) & (x < 1.5 * 2.0**-127)).numpy()
            note = (
                f"  and {(bad & known).sum()} in (2**-127, 1.5 * 2**-127), where ml_dtypes is wrong"
            )
            bad &= ~known
        unexplained += int(bad.sum())
        print(f"{fmt.name:12} {bad.size:>9,} {bad.sum():>26,}{note}")
    return unexplained


def main() -> int:
    """Run what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="only the table of small formats")
    parser.add_argument("--step", type=int, default=1, help="every STEP-th pattern only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, ml_dtypes {ml_dtypes.__version__}, numpy {np.__version__}, "
        f"{platform.machine()}, 1 thread"
    )
    count = check_small()
    if not arguments.small:
        for fmt in (E4M3FN, E5M2):
            for saturate in (True, False):
                count += check_all(fmt, saturate=saturate, step=arguments.step)
    return int(count > 0)


if __name__ == "__main__":
    raise SystemExit(main())
