"""All that needs a GPU, in one run of a few minutes and one table.

    python benchmarks/gpu_table.py [--device auto|cpu|cuda] [--quick] [--table FILE] [--json FILE]

The tests marked `gpu`; a linear layer in BF16, in FP8 by torchao and at units (`gpu_linear.py`);
and 200 steps of a Llama of 100 million parameters in the same three ways (`gpu_llama.py`). What is
not installed, or not on this device, has a row that says so. `--device cpu --quick` runs the same
lines at tiny sizes on a CPU: it shows that they work, and its speeds say nothing.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gpu_linear
import gpu_llama
import paired
import torch
from paired import Row

from unitscale.gemm.executor import fp8_products
from unitscale.train.device import resolve

REPOSITORY = Path(__file__).parents[1]
TESTS = ("tests/gpu",)


def test_row(device: str) -> Row:
    """What pytest says of the tests for this device, in its last line."""
    kind = torch.device(device).type
    chosen = ["-m", "gpu"] if kind == "cuda" else ["-k", "cpu"]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *chosen, *TESTS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    return Row(
        case=f"tests of {kind}",
        measure="passed" if done.returncode == 0 else "FAILED",
        milliseconds=1e3 * (time.perf_counter() - begin),
        note=last,
    )


def linear_rows(device: str, *, quick: bool) -> list[Row]:
    """The linear layer, where it can be measured."""
    place = torch.device(device)
    if quick:
        return gpu_linear.measured(32, place, rounds=3)
    if place.type == "cuda" and not (ability := fp8_products(place)).has:
        return [Row(case="linear layer", measure="", note=ability.why)]
    return [row for size in gpu_linear.SIZES for row in gpu_linear.measured(size, place, 7)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, print the table and write it; 1 if a test failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:NUMBER")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, eager")
    parser.add_argument("--table", type=Path, default=Path("gpu.md"), help="where the table goes")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args(arguments)
    try:
        device = resolve(options.device)
    except ValueError as error:
        parser.error(str(error))
    if device == "cpu" and not options.quick:
        parser.error("a CPU runs the tiny sizes only: add --quick, or name a GPU with --device")
    if options.quick:
        gpu_linear.INNER = "eager"
    torch.set_num_threads(2)  # with one, `paired` would count the time of the CPU
    began = time.perf_counter()
    rows = [test_row(device)]
    rows += linear_rows(device, quick=options.quick)
    rows += gpu_llama.rows(gpu_llama.QUICK if options.quick else gpu_llama.FULL, device)
    name = torch.cuda.get_device_name(torch.device(device)) if "cuda" in device else "a CPU"
    title = f"What needs a GPU, on {name}, in {time.perf_counter() - began:.0f} seconds"
    if options.quick:
        title += "; tiny sizes, whose speeds say nothing"
    paired.report(title, rows, options.json)
    options.table.write_text(f"{title}.\n\n{paired.machine()}\n\n{paired.table(rows)}")
    return int(rows[0].measure == "FAILED")


if __name__ == "__main__":
    sys.exit(main())
