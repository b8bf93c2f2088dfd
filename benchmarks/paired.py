"""Timing on a machine that is not quiet: cases take turns, and each is compared within its turn.

A benchmark measures `Row`s, prints them and, given `--json FILE`, writes them for `suite.py`.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from statistics import median, quantiles

import torch

SLOW = 1.0
"""Seconds of a call from which a case gets `FEW` rounds only."""
FEW = 3

PEERS = ("gfloat", "microxcaling", "ml_dtypes", "torchao", "unit-scaling")
"""Distributions whose versions are printed if they took part."""

# glibc gives memory of large tensors back and faults it in again, which takes longer than most
# kernels here; with these, a new tensor costs what one that is kept costs.
STEADY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**37 - 1),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: the median over rounds and its quartiles.

    measure says what it is: "of copy" is the time of the copy over that of the case. A case that
    could not run has no figure and a note that says why.
    """

    case: str
    measure: str
    median: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    milliseconds: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """Those of a table: case, figure, spread, time, note."""
        if self.median is None:
            return [self.case, "-", "-", "-", self.note]
        spread = f"{self.low:.2f} to {self.high:.2f}, n={self.rounds}"
        took = "-" if self.milliseconds is None else f"{self.milliseconds:.1f}"
        return [self.case, f"{self.median:.2f} {self.measure}", spread, took, self.note]


COLUMNS = ["case", "figure", "quartiles", "ms", "note"]


def compare(
    reference: Callable[[], object],
    cases: Mapping[str, Callable[[], object]],
    measure: str,
    rounds: int,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Time of `reference` over that of each case; a row each.

    In a round the reference is timed right before every case, so a ratio compares neighbours. One
    call of each, to compile and warm up, comes first and is not counted. With one thread the clock
    is the CPU time of the thread, which other processes do not stretch, else the wall's.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    wanted = {}
    for name, case in cases.items():
        case()
        wanted[name] = FEW if _seconds(case, clock) > SLOW else rounds
    ratios: dict[str, list[float]] = {name: [] for name in cases}
    times: dict[str, list[float]] = {name: [] for name in cases}
    reference()
    for number in range(rounds):
        for name, case in cases.items():
            if number < wanted[name]:
                base = _seconds(reference, clock)
                times[name].append(_seconds(case, clock))
                ratios[name].append(base / times[name][-1])
    return [
        Row(
            case=name,
            measure=measure,
            median=median(ratios[name]),
            low=quantiles(ratios[name], n=4)[0],
            high=quantiles(ratios[name], n=4)[2],
            rounds=wanted[name],
            milliseconds=1e3 * median(times[name]),
            note=(notes or {}).get(name, ""),
        )
        for name in cases
    ]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    return parser


def steady_memory() -> None:
    """Start this process again with a malloc that keeps its memory; see STEADY."""
    if platform.libc_ver()[0] == "glibc" and not STEADY.items() <= dict(os.environ).items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | STEADY)


def machine() -> str:
    """Processor, threads and versions, on one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    threads = torch.get_num_threads()
    installed = packages_distributions()
    loaded = {name for module in sys.modules for name in installed.get(module, []) if name in PEERS}
    peers = "".join(f", {name} {version(name)}" for name in sorted(loaded))
    clock = "CPU time" if threads == 1 else "wall clock"
    return (
        f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; "
        f"{threads} thread{'s' * (threads > 1)}, {clock}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, unitscale {version('unitscale')}{peers}"
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def report(title: str, rows: Sequence[Row], path: Path | None) -> None:
    """Print the table, and write the rows as JSON if asked to."""
    print(f"{title}\n{machine()}\n\n{table(rows)}")
    if path is not None:
        data = {"title": title, "machine": machine(), "rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(data, indent=1) + "\n")


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    begin = clock()
    call()
    return clock() - begin
