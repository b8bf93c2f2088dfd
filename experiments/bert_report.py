"""The tables of the BERT experiments, and their verdicts, from the runs that are there.

    python experiments/bert_report.py --out runs/bert
    python experiments/bert_report.py --out runs/bert --page docs/bert.md

With `--page` the tables replace what stands between the two marks in that file.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_arms import ARMS, CONTROL
from bert_equivalence import MEASURES, judge
from pool import Result, setting
from unitscale.report.atomic import replacing
from unitscale.sweep.interval import Interval

MARKS = ("<!-- results: made by experiments/bert_report.py -->", "<!-- end of results -->")
Key = tuple[str, str, str]  # measure, model, recipe
Values = dict[Key, dict[int, float]]  # a value for each seed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bert"))
    parser.add_argument("--page", type=Path, help="a Markdown file with the two marks")
    args = parser.parse_args()
    runs = list(read(args.out))
    if not runs:
        raise SystemExit(f"no finished run below {args.out}; run bert_pretrain.py first")
    text = report(runs)
    print(text)
    if args.page is not None:
        put(args.page, text)


def read(folder: Path) -> Iterator[tuple[Key, int, dict[str, Any]]]:
    """Key, seed and content of every run."""
    for path in sorted(folder.glob("pretrain/*.json")):
        model, recipe, seed = parts(path.stem)
        yield ("mlm", model, recipe), seed, json.loads(path.read_text())
    for path in sorted(folder.glob("finetune/*.json")):
        task, _, rest = path.stem.partition("-")
        model, recipe, seed = parts(rest)
        yield (task, model, recipe), seed, json.loads(path.read_text())


def parts(stem: str) -> tuple[str, str, int]:
    """Model, recipe (which has hyphens) and seed of a run's name."""
    model, _, rest = stem.partition("-")
    recipe, _, seed = rest.rpartition("-")
    return model, recipe, int(seed)


def report(runs: list[tuple[Key, int, dict[str, Any]]]) -> str:
    """Settings, values, differences and costs."""
    values: Values = {}
    for key, seed, run in runs:
        result: Result = run["result"]
        value = result["loss" if key[0] == "mlm" else "score"]
        values.setdefault(key, {})[seed] = math.inf if value is None else value
    measures = [name for name in MEASURES if any(key[0] == name for key in values)]
    first = next(run["setting"] for key, _, run in runs if key[0] == "mlm")
    seeds = max(map(len, values.values()))
    own = {key: first[key] for key in ("data", "steps", "batch_size", "length", "vocab_size")}
    shape = {"layers": first["depth"], "width": first["width"], "seeds": f"at most {seeds}"}
    cpu_s = sum(run["result"]["cpu_s"] for _, _, run in runs)
    return "\n".join(
        [
            setting(**own, **shape, runs=len(runs), cost=f"{cpu_s / 60:.0f} CPU-minutes"),
            "",
            "Mean and 95 % interval over seeds (n); loss in nats, the rest in percent.",
            "",
            *table(measures, values, value_cell),
            "",
            "Difference from FP32 of the same seed, its 90 % interval, and the verdict.",
            "",
            *table(measures, values, verdict_cell),
            "",
            "CPU-seconds of a run, mean over seeds.",
            "",
            *costs(runs, measures),
        ]
    )


def table(measures: list[str], values: Values, cell: Any) -> list[str]:
    """A row for each arm, a column for each measure."""
    names = [f"{MEASURES[name].name} (± {MEASURES[name].margin:g})" for name in measures]
    names = names if cell is verdict_cell else [MEASURES[name].name for name in measures]
    lines = [f"| model | format | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for model, recipe in ARMS:
        if cell is verdict_cell and recipe == "fp32":
            continue
        cells = [cell(values, name, model, recipe) for name in measures]
        mark = " (control)" if recipe == CONTROL else ""
        lines.append(f"| {model} | `{recipe}`{mark} | {' | '.join(cells)} |")
    return lines


def value_cell(values: Values, measure: str, model: str, recipe: str) -> str:
    """Mean, interval and n."""
    found = list(values.get((measure, model, recipe), {}).values())
    if not found:
        return "-"
    if lost := sum(not math.isfinite(value) for value in found):
        return f"{lost} of {len(found)} diverged"
    interval, digits = Interval.of(found), 3 if measure == "mlm" else 1
    half = "" if interval.half is None else f" ± {interval.half:.{digits}f}"
    return f"{interval.mean:.{digits}f}{half} ({interval.n})"


def verdict_cell(values: Values, measure: str, model: str, recipe: str) -> str:
    """The verdict on seeds that both have."""
    own, baseline = (values.get((measure, model, name), {}) for name in (recipe, "fp32"))
    differences = [own[seed] - baseline[seed] for seed in sorted({*own} & {*baseline})]
    return str(judge(differences, MEASURES[measure])) if differences else "-"


def costs(runs: list[tuple[Key, int, dict[str, Any]]], measures: list[str]) -> list[str]:
    """Seconds of one core, by arm."""
    spent: Values = {}
    for key, seed, run in runs:
        spent.setdefault(key, {})[seed] = run["result"]["cpu_s"]

    def cell(values: Values, measure: str, model: str, recipe: str) -> str:
        found = list(values.get((measure, model, recipe), {}).values())
        return f"{sum(found) / len(found):.0f}" if found else "-"

    return table(measures, spent, cell)


def put(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        SystemExit: the page has not got both.
    """
    before, first, rest = page.read_text().partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not (first and last):
        raise SystemExit(f"{page} lacks the lines {MARKS[0]} and {MARKS[1]}")
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
