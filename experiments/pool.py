"""Run many training runs on a few processes, and keep what is done.

Finished runs are lines of a JSONL file: an experiment may be stopped at any time, and a wider grid
adds only what is new.
"""

import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

import torch

import unitscale

Point = TypeVar("Point")  # a frozen dataclass of JSON values
Result = dict[str, Any]


def run_all(
    points: Iterable[Point],
    run: Callable[[Point], Result],
    cache: Path,
    *,
    workers: int,
    only_done: bool = False,
) -> dict[Point, Result]:
    """The result of `run` on every point, from the cache where it is there.

    With `only_done` nothing is run, and points that are not in the cache are left out.
    """
    points = list(points)
    kind = type(points[0])
    results = {}
    for line in cache.read_text().splitlines() if cache.exists() else ():
        record = json.loads(line)
        results[kind(**record["point"])] = record["result"]
    if only_done:
        return {point: results[point] for point in points if point in results}
    missing = [point for point in points if point not in results]
    print(f"{len(points) - len(missing)} of {len(points)} runs are in {cache}", flush=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hold locks of dead threads
    with (
        ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool,
        cache.open("a") as file,
    ):
        start = time.perf_counter()
        futures = {pool.submit(run, point): point for point in missing}
        for count, future in enumerate(as_completed(futures), 1):
            point, result = futures[future], future.result()
            results[point] = result
            file.write(json.dumps({"point": asdict(point), "result": result}) + "\n")
            file.flush()
            minutes = (time.perf_counter() - start) / 60
            print(f"{count}/{len(missing)} {point} {result} ({minutes:.1f} min)", flush=True)
    return {point: results[point] for point in points}


def setting(**own: Any) -> str:
    """One sentence with the machine, the versions and what an experiment adds."""
    known = {
        "machine": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "unitscale": unitscale.__version__,
    }
    return "; ".join(f"{key} {value}" for key, value in (own | known).items()) + "."


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def mean_and_spread(values: list[float]) -> str:
    """Mean ± standard deviation, or the one value."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{mean(values):.4f} ± {stdev(values):.4f}"
