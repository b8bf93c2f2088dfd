"""A table of what `unitscale compare` left behind: losses, measuring steps, and values lost when.

    python experiments/long_runs.py runs/gpt2 runs/gpt2-once

A row per recipe, mean and standard deviation over its seeds. "Lost" is from the run's own log: the
measuring step at which a tensor of some product had lost the largest share of its values since the
step before, to the format's maximum or to zero. A run with `remeasure="once"` looks once, at the
start, and sees nothing of what it loses later.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

from pool import Result, mean_and_spread, setting

LOST = re.compile(r"of (?P<tensor>'.*?').*?(?P<high>[\d.]+)% saturated and (?P<low>[\d.]+)% went")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder."""

    config: Result
    result: Result
    log: list[Result]

    @property
    def name(self) -> str:
        """Recipe, and when it measures where that is not the default."""
        remeasure = self.config["remeasure"]
        return self.config["recipe"] + (f", {remeasure}" if remeasure != "geometric" else "")

    @property
    def measuring_steps(self) -> int:
        """How many steps measured units."""
        return sum(bool(entry.get("measured")) for entry in self.log)

    @property
    def worst(self) -> tuple[float, str]:
        """The largest share lost, and a sentence on it."""
        found = [
            (max(high, low), f"{low:.0f} % to zero, {high:.1f} % at the maximum, step {step}")
            for entry in self.log
            for line in entry.get("lost") or ()
            if (match := LOST.search(line))
            for step, high, low in [(entry["step"], *map(float, match.group("high", "low")))]
        ]
        return max(found, default=(0.0, "none"))


def read(folder: Path) -> Run:
    """A run folder of `unitscale train`, or one of those below a comparison's `runs`."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return Run(
        config=json.loads((folder / "config.json").read_text())["config"],
        result=json.loads((folder / "result.json").read_text()),
        log=[json.loads(line) for line in lines],
    )


def table(runs: list[Run]) -> str:
    """A row per recipe, in the order in which they first appear."""
    header = ["recipe", "seeds", "training loss", "validation loss", "measuring steps", "lost"]
    lines = [header, ["---"] * len(header)]
    for name in dict.fromkeys(run.name for run in runs):
        own = [run for run in runs if run.name == name]
        whole = [run.result for run in own if not run.result["diverged"]]
        losses = [
            mean_and_spread([result[key] for result in whole]) if whole else "diverged"
            for key in ("final_train_loss", "valid_loss")
        ]
        if whole and len(whole) < len(own):
            losses[0] += f" ({len(own) - len(whole)} diverged)"
        steps = "/".join(str(n) for n in sorted({run.measuring_steps for run in own}))
        worst = max(run.worst for run in own)[1]
        lines.append([name, str(len(own)), *losses, steps, worst])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Print the table of all given comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    folders = parser.parse_args().folders
    finished = [path.parent for folder in folders for path in sorted(folder.rglob("result.json"))]
    runs = [read(folder) for folder in finished]
    if not runs:
        raise SystemExit(f"no finished run below {', '.join(map(str, folders))}")
    config = runs[0].config
    batch = f"{config['batch_size']} x {config['sequence_length']} bytes"
    print(setting(steps=config["steps"], batch=batch) + "\n\n" + table(runs))


if __name__ == "__main__":
    main()
