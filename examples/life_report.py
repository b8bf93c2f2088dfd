"""What `life_of_a_model.py` keeps of each step, and the one report that it makes of them."""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROW = "row.json"
"""In the folder of a step: what it was."""

Row = dict[str, Any]
Check = dict[str, Any]


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name, and rename it when it is whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def row_in(folder: Path) -> Row:
    """What a step was."""
    found: Row = json.loads((folder / ROW).read_text(encoding="utf-8"))
    return found


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder that of one life.

    Raises:
        ValueError: it is that of another, or of something else.
    """
    file = out / "settings.json"
    if not file.exists():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} holds something else than a life; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        write(file, json.dumps(settings, indent=1))
    theirs = json.loads(file.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{out} holds a life whose {name} is {theirs.get(name)!r}, and this one's is "
                f"{value!r}; give another --out"
            )


def finished(folder: Path, step: Callable[[Path], Row]) -> Row:
    """Do a step, or read back what it was: its folder is there when all of it is done.

    What a step tries instead is not on its clock, and what it warns of goes into the report.
    """
    if folder.exists():
        print(f"{folder}: done before, read back", flush=True)
        return row_in(folder)
    print(f"{folder}: ", end="", flush=True)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a call that was stopped
    temporary.mkdir(parents=True)
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        row = step(temporary)
    row["cpu_s"] = time.process_time() - begun
    row["warned"] = sorted({str(one.message) for one in caught})
    row["instead"] = {what: {"loss": loss()} for what, loss in row.get("instead", {}).items()}
    write(temporary / ROW, json.dumps(row, indent=1))
    temporary.rename(folder)
    print(f"loss {row['before']:.3f} -> {row['after']:.3f}, {row['cpu_s']:.0f} s", flush=True)
    return row


def check(question: str, answer: str, holds: bool) -> Check:
    """One way in which a step could quietly have done nothing, and what was found."""
    return {"question": question, "answer": answer, "holds": holds}


def failed(rows: Mapping[str, Row]) -> list[str]:
    """The checks that do not hold."""
    return [
        f"{name}: {one['question']}: {one['answer']}"
        for name, row in rows.items()
        for one in row["checks"]
        if not one["holds"]
    ]


def page(title: str, rows: Mapping[str, Row], fp32: Mapping[str, Row]) -> str:
    """The report, as Markdown that can be read on a terminal."""
    steps = [step_cells(name, row, fp32[name]) for name, row in rows.items()]
    tries = [
        [
            name,
            what,
            f"{row['after']:.3f}",
            f"{other['loss']:.3f}",
            *gained(row, other),
            *cost(other),
        ]
        for name, row in rows.items()
        for what, other in row["instead"].items()
    ]
    checks = [
        [name, one["question"], one["answer"], "yes" if one["holds"] else "NO"]
        for name, row in rows.items()
        for one in row["checks"]
    ]
    warned = [f"- {name}: {text}" for name, row in rows.items() for text in row.get("warned", [])]
    return "\n".join(
        [
            f"# {title}",
            "",
            "Losses are nats a byte of text held out, in the numerics of the model. Bytes are",
            "those of its tensors on disk. `rounded` counts linear layers but the head. Units are",
            "`kept` where a step ends with those that it began with. CPU s has evaluation and",
            "checks in it.",
            "",
            *table(STEPS, steps),
            "",
            f"CPU seconds in all: {spent(rows)}; of the same life in FP32 {spent(fp32)}. On a CPU",
            "rounding is emulated, so that FP8 is slower there.",
            "",
            "## What else the compute could have bought",
            "",
            "Gained: how much lower the step ends. Below zero the alternative was better.",
            "",
            *table(TRIES, tries),
            "",
            "## Did each step do something?",
            "",
            *table(CHECKS, checks),
            "",
            "## What was warned of",
            "",
            *(warned or ["Nothing."]),
            "",
        ]
    )


STEPS = (
    "step", "shape", "parameters", "bytes", "tokens", "CPU s", "loss before", "after",
    "in FP32", "gained", "recipe", "rounded", "units",
)  # fmt: skip
TRIES = ("step", "instead of it", "step ends", "this ends", "gained", "tokens", "CPU s")
CHECKS = ("step", "", "found", "as it should be")


def step_cells(name: str, row: Row, fp32: Row) -> list[str]:
    """A step as cells; what it gained is against the best of what was tried instead of it."""
    others = row["instead"].values()
    best = min(others, key=lambda other: other["loss"], default=None)
    return [
        name,
        row["shape"],
        f"{row['parameters']:,}",
        f"{row['bytes']:,}",
        f"{row['tokens']:,}",
        f"{row['cpu_s']:.0f}",
        f"{row['before']:.3f}",
        f"{row['after']:.3f}",
        f"{fp32['after']:.3f}",
        *(gained(row, best) if best else ["–"]),
        row["recipe"],
        row["rounded"],
        units(**row["units"]),
    ]


def units(**found: int) -> str:
    """How many units are in force, and how many of them came from the step before."""
    rest = [f"{found[key]} {key}" for key in ("carried over", "kept") if key in found]
    return ", ".join([str(found["in force"]), *rest]) if found else "–"


def spent(rows: Mapping[str, Row]) -> str:
    """The CPU seconds of all steps."""
    return f"{sum(row['cpu_s'] for row in rows.values()):.0f}"


def gained(row: Row, other: Mapping[str, float]) -> list[str]:
    """By how much a step ends below something else."""
    return [f"{other['loss'] - row['after']:+.3f}"]


def cost(other: Mapping[str, float]) -> list[str]:
    """What an alternative took, where that is anything to speak of."""
    if "cpu_s" not in other:
        return ["0", "–"]
    return [f"{other['tokens']:,}", f"{other['cpu_s']:.0f}"]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown, its columns aligned."""
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    text = [
        "| " + " | ".join(c.ljust(n) for c, n in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (n + 2) for n in widths) + "|"
    return [text[0], rule, *text[1:]]
