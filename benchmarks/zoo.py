"""Try `unit_scale` on many architectures: what it captures, keeps exact, and saves in FP8.

    python benchmarks/zoo.py                       # every check of every model, then docs/zoo.md
    python benchmarks/zoo.py Llama BERT --checks units,exact
    python benchmarks/zoo.py --peer /path/to/python  # also unit-scaling (pip), installed there

Each check runs in a process of its own, so a failure is a line of the table. Results are kept in
a JSONL file: a run that was cut goes on, and `--fresh` measures again.
"""

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
CACHE = Path(__file__).parents[1] / "runs" / "zoo.jsonl"
TIMEOUT_S = 3600
ARM_CHECKS = ("fp32", "fp32-again", "fp8", "fp8-none")
CHECKS = ("units", "exact", "train", "peer")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One check of one model; `steps` only where it trains."""

    model: str
    check: str
    steps: int = 0

    @property
    def key(self) -> str:
        """Under which its result is kept."""
        return f"{self.model} {self.check} {self.steps or ''}".strip()


Results = dict[str, dict[str, Any]]


def plan(names: Sequence[str], checks: Sequence[str], steps: int) -> list[list[Job]]:
    """The jobs, one list per process: all cheap checks come before the first training run."""
    cheap = [check for check in ("units", "exact") if check in checks]
    arms = ARM_CHECKS if "train" in checks else ()
    peer = ["peer"] if "peer" in checks else []
    groups = [[Job(model=name, check=c) for c in some] for some in (cheap, peer) for name in names]
    groups += [[Job(model=name, check=arm, steps=steps) for arm in arms] for name in names]
    return [group for group in groups if group]


def read(cache: Path) -> Results:
    """The kept results by key; the last one wins, and a line cut short is dropped."""
    results = {}
    for line in cache.read_text("utf-8").splitlines() if cache.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[record["key"]] = record["result"]
    return results


def run_all(groups: Sequence[Sequence[Job]], options: argparse.Namespace) -> Results:
    """Run the jobs that have no result yet, and keep what each process says."""
    results = {} if options.fresh else read(options.cache)
    unknown = ([job for job in group if job.key not in results] for group in groups)
    todo = [group for group in unknown if group]
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    with (
        options.cache.open("w" if options.fresh else "a", encoding="utf-8") as file,
        ThreadPoolExecutor(options.workers) as pool,
    ):
        for i, found in enumerate(pool.map(lambda group: run_group(group, options), todo), 1):
            for key, result in found.items():
                file.write(json.dumps({"key": key, "result": result}) + "\n")
                numbers = (f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, float))
                print(f"[{i}/{len(todo)}] {key}:", result.get("error") or ", ".join(numbers))
            file.flush()
            sys.stdout.flush()
            results |= found
    return results


def run_group(group: Sequence[Job], options: argparse.Namespace) -> Results:
    """The results of the checks of one model in a fresh process; a crash is a result too."""
    python = options.peer if group[0].check == "peer" else sys.executable
    checks = ",".join(job.check for job in group)
    command = [python, __file__, "--one", group[0].model, checks, "--steps", str(group[0].steps)]
    command += ["--data", str(options.data)] if options.data else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    error, lines = "", ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False
        )
        lines, error = done.stdout, (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    except subprocess.TimeoutExpired as expired:
        lines, error = str(expired.stdout or ""), f"no result after {TIMEOUT_S} s"
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    found += [{"error": error}] * (len(group) - len(found))
    return {job.key: result for job, result in zip(group, found, strict=True)}


def run_here(name: str, checks: Sequence[str], steps: int, data: Path | None) -> None:
    """Print the result of each check of one model as a line, in this process."""
    import torch
    import zoo_checks
    from zoo_models import ENTRIES

    from unitscale.data import open_corpus

    torch.set_num_threads(1)
    entry, text = ENTRIES[name], open_corpus(data).train
    for check in checks:
        try:
            result = zoo_checks.run(check, entry, text, steps)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {zoo_checks.first_line(str(error))}"}
        print(json.dumps(result), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names as in the table; all without any")
    parser.add_argument("--checks", default="units,exact,train", help="of " + ", ".join(CHECKS))
    parser.add_argument("--steps", type=int, default=200, help="of each training run")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--cache", type=Path, default=CACHE, help="JSONL file of results")
    parser.add_argument("--fresh", action="store_true", help="forget the kept results")
    parser.add_argument("--data", type=Path, help="a text; else Python's standard library")
    parser.add_argument("--peer", help="a Python with the unit-scaling package: check that too")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "CHECKS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.checks = options.checks.split(",") + (["peer"] if options.peer else [])
    unknown = set(options.checks) - set(CHECKS)
    if unknown or ("peer" in options.checks and not options.peer):
        parser.error(f"--checks: {sorted(unknown) or 'peer needs --peer'}; expected {CHECKS}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and write the page."""
    options = parse(arguments)
    if options.one:
        name, checks = options.one
        run_here(name, checks.split(","), options.steps, options.data)
        return 0
    from zoo_models import ENTRIES
    from zoo_page import write_page

    unknown = set(options.models) - ENTRIES.keys()
    if unknown:
        print(f"no such model: {sorted(unknown)}; there are {list(ENTRIES)}", file=sys.stderr)
        return 2
    groups = plan(options.models or list(ENTRIES), options.checks, options.steps)
    results = run_all(groups, options)
    write_page(options.page, ENTRIES, results, options.steps)
    return int(any("error" in results[job.key] for group in groups for job in group))


if __name__ == "__main__":
    sys.exit(main())
