"""Is a recipe in force in many kinds of models, and where not, does it say so?

    python benchmarks/coverage.py                    # every model, then docs/coverage.md
    python benchmarks/coverage.py Longformer "tied weights"

Two training steps of each model that the zoo does not list, plain, in FP32 with units, and in FP8.
Results are kept in a JSONL file, so that a run that was cut goes on; `--fresh` measures again.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
CACHE = Path(__file__).parents[1] / "runs" / "coverage.jsonl"
TIMEOUT_S = 600

Results = dict[str, dict[str, Any]]


def read(cache: Path) -> Results:
    """The kept results by model; the last one wins, and a line cut short is dropped."""
    results = {}
    for line in cache.read_text("utf-8").splitlines() if cache.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[record["model"]] = record["result"]
    return results


def run_all(names: Sequence[str], options: argparse.Namespace) -> Results:
    """Run the models that have no result yet, and keep each result as it comes."""
    results = {} if options.fresh else read(options.cache)
    todo = [name for name in names if name not in results]
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    with options.cache.open("w" if options.fresh else "a", encoding="utf-8") as file:
        for i, (name, result) in enumerate(run_apart(todo), 1):
            file.write(json.dumps({"model": name, "result": result}) + "\n")
            file.flush()
            said = result.get("error") or f"coverage {result['coverage']:.4f}"
            print(f"[{i}/{len(todo)}] {name}: {said}", flush=True)
            results[name] = result
    return results


def run_apart(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of models from another process, which is started again where one ends it."""
    todo = list(names)
    while todo:
        for result in lines_of([sys.executable, __file__, "--here", *todo]):
            yield todo.pop(0), result
        if todo:
            yield todo.pop(0), {"error": f"its process ended, or gave nothing for {TIMEOUT_S} s"}


def lines_of(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The JSON lines that a process prints, until it ends or is silent for too long."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def collect() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    try:
        while (line := lines.get(timeout=TIMEOUT_S)) is not None:
            if line.startswith('{"'):
                yield json.loads(line)
    except queue.Empty:
        return
    finally:
        process.kill()
        process.wait()
        reader.join()


def run_here(names: Sequence[str]) -> None:
    """Print the result of each model as a line, in this process."""
    import coverage_checks
    import torch
    from coverage_models import ENTRIES
    from zoo_checks import first_line

    from unitscale.data import open_corpus

    torch.set_num_threads(1)
    text = open_corpus(None).train
    for name in names:
        try:
            result = coverage_checks.check(ENTRIES[name], text)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {first_line(str(error))}"}
        print(json.dumps(result), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names as in the table; all without any")
    parser.add_argument("--cache", type=Path, default=CACHE, help="JSONL file of results")
    parser.add_argument("--fresh", action="store_true", help="forget the kept results")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table goes")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and write the page; 1 if a model failed or was silent."""
    options = parse(arguments)
    if options.here:
        run_here(options.models)
        return 0
    from coverage_models import ENTRIES
    from coverage_page import write_page

    unknown = set(options.models) - ENTRIES.keys()
    if unknown:
        print(f"no such model: {sorted(unknown)}; there are {list(ENTRIES)}", file=sys.stderr)
        return 2
    names = options.models or list(ENTRIES)
    results = run_all(names, options)
    write_page(options.page, [name for name in ENTRIES if name in results], results)
    return int(any(is_fault(results[name]) for name in names))


def is_fault(result: dict[str, Any]) -> bool:
    """Whether a model failed, or keeps full precision somewhere without a word."""
    return "error" in result or result["silent"]


if __name__ == "__main__":
    sys.exit(main())
