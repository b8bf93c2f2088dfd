"""Kill runs, damage their files and write nonsense on the command line; count what goes wrong.

    python experiments/torture.py kill damage fuzz --folder torture

A case is a line of `cases.jsonl` in the folder, and one that is there is not run again, so the
script may be stopped at any time. Commands run in a forked child, which has torch already.

kill    a signal at a random moment, once or twice, then --resume to the end: the log, result
        and checkpoint must be those of a run that was never stopped
damage  a byte changed or lost in every region of every file: one line, or the same end
fuzz    random options and values: no traceback, exit code 0, 1 or 2, and one line where it failed
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from command_lines import command_lines, make_surroundings
from unitscale.cli import main as unitscale_main
from unitscale.data import Corpus, open_corpus
from unitscale.train import CheckpointError, TrainConfig, train

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
KILLS = 20
FUZZED = 400
PATIENCE = 60.0
"""Seconds after which a command is asked to stop, and again as many after which it hangs."""
MEMORY = 12 * 2**30

SETTINGS = ["--width", "32", "--depth", "1", "--batch-size", "4", "--sequence-length", "16"]
SETTINGS += ["--steps", "12", "--threads", "1", "--set", "eval_windows=8", "--set", "eval_every=4"]
SETTINGS += ["--set", "checkpoint_every=3"]
RUNS = {
    "char": ["train", "--recipe", "fp8", *SETTINGS, "--set", "record_every=5"],
    "llama": ["train", "--recipe", "fp8", "--model", "llama", *SETTINGS],
    "compare": ["compare", "--recipes", "fp32,fp8", *SETTINGS],
}

PRELOADED = (
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
)
PRELOADED += ("unitscale.train.comparison", "unitscale.report", "typer", "rich.progress")
PRELOADED += ("matplotlib.backends.backend_agg", "plotly.graph_objects")

Outcome = dict[str, Any]
Case = tuple[str, Callable[[], Outcome]]


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, or minus the signal, and what it printed."""

    code: int
    err: str
    seconds: float
    note: str = ""


class Child:
    """A command in a forked process."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.err = folder.parent / f"{folder.name}.err"
        self.begin = time.perf_counter()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            become(arguments, folder, self.err)

    def signal(self, name: str) -> None:
        """Send a signal, unless the command has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.process, getattr(signal, name))

    def wait(self, seconds: float = PATIENCE) -> Done | None:
        """How it ended; None if it has not in so many seconds."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                took = time.perf_counter() - self.begin
                err = self.err.read_text(errors="replace") if self.err.exists() else ""
                return Done(os.waitstatus_to_exitcode(status), err, took)
            time.sleep(0.005)
        return None


def become(arguments: list[str], folder: Path, err: Path) -> None:
    """Be the command; never returns."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        sys.argv = ["unitscale", *arguments]
        unitscale_main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def without_time(value: Any) -> Any:
    """A JSON value without what the clock decides: speeds, and the checksums over them."""
    if isinstance(value, dict):
        clock = ("tokens_per_s", "crc")
        return {key: without_time(item) for key, item in value.items() if key not in clock}
    return [without_time(item) for item in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """All that a run or a comparison left, in a form that two of them can be compared in."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = without_time(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [without_time(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                rest = json.loads(file.metadata()["state"])
            bits = {k: t.reshape(-1).view(torch.uint8).tolist() for k, t in tensors.items()}
            found[name] = (bits, rest | {"log": rest["log"][0]})
        elif path.suffix == ".tmp":
            continue  # what a killed process leaves
        elif path.is_file():
            found[name] = "is there"
    return found


def first_difference(one: dict[str, Any], two: dict[str, Any]) -> str | None:
    """The first file in which two folders differ."""
    return next((n for n in sorted({*one, *two}) if one.get(n) != two.get(n)), None)


def kill_cases(folder: Path, count: int) -> Iterator[Case]:
    """A run killed once or twice, for each kind of run and signal."""
    text = Path(make_surroundings(folder / "texts")["text"])
    whole: dict[str, dict[str, Any]] = {kind: {} for kind in RUNS}
    for number, (kind, line), name in product(range(count), RUNS.items(), SIGNALS):
        arguments = [*line, "--data", str(text), "--out", "out"]
        call = partial(killed, folder / "kill" / kind, name, number, arguments, whole[kind])
        yield f"kill {kind} {name} {number}", call


def killed(
    folder: Path, name: str, number: int, arguments: list[str], whole: dict[str, Any]
) -> Outcome:
    """One case: what differs from the undisturbed run, which is made once."""
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "whole").mkdir(parents=True)
        done = Child(arguments, folder / "whole").wait(10 * PATIENCE)
        assert done is not None, "the undisturbed run hangs"
        assert done.code == 0, done.err
        whole |= {"contents": contents(folder / "whole" / "out"), "seconds": done.seconds}
    draw = random.Random(f"{name} {number}")
    own = folder / f"{name}-{number}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    kills = 0
    for _ in range(draw.choice((1, 1, 2))):
        child = Child([*arguments, "--resume"], own)
        early = draw.random() < 0.1
        time.sleep(draw.uniform(0, 0.1 if early else whole["seconds"]))
        child.signal(name)
        done = child.wait()
        if done is None or "Traceback" in done.err:
            return {"fault": "hangs" if done is None else done.err[-2000:]}
        kills += done.code != 0
    done = Child([*arguments, "--resume"], own).wait(10 * PATIENCE)
    if done is None or done.code != 0:
        return {"fault": "hangs" if done is None else done.err[-2000:]}
    differs = first_difference(contents(own / "out"), whole["contents"])
    if differs is None:
        shutil.rmtree(own)
    return {"fault": differs and f"{differs} differs", "kills": kills}


def tiny_config() -> TrainConfig:
    """A run of six steps."""
    model = {"width": 16, "depth": 1}
    sizes: dict[str, Any] = {"batch_size": 2, "sequence_length": 8, "eval_windows": 2, "steps": 6}
    return TrainConfig(recipe="fp32", model=model, eval_every=2, **sizes)


def stop(record: dict[str, Any]) -> None:
    """Ctrl-C during step 4."""
    if record["step"] == 4 and "loss" in record:
        signal.raise_signal(signal.SIGINT)


def damage_cases(folder: Path, stride: int = 1) -> Iterator[Case]:
    """A byte changed, or the rest lost, at places in all files of a stopped and a finished run."""
    corpus = open_corpus(make_surroundings(folder / "texts")["text"])
    config, root = tiny_config(), folder / "damage"
    shutil.rmtree(root, ignore_errors=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    train(config, corpus, root / "finished")
    with suppress(KeyboardInterrupt):
        train(config, corpus, root / "stopped", on_record=stop)
    whole = contents(root / "finished")
    for run, names in (
        ("stopped", ("checkpoint.safetensors", "log.jsonl", "config.json")),
        ("finished", ("log.jsonl", "result.json", "config.json")),
    ):
        for name in names:
            content = (root / run / name).read_bytes()
            for place in places(content, name):
                if place % stride == 0:
                    for kind in ("flip", "zero", "newline", "cut"):
                        key = f"damage {run} {name} {place} {kind}"
                        # Each case has its own copy, in place of the one before.
                        broken, path = damaged(content, place, kind), root / run / name
                        yield key, partial(resumed, path, broken, config, corpus, whole)


def places(content: bytes, name: str) -> list[int]:
    """Every byte of a text; of a checkpoint, the header densely and its tensors here and there."""
    if not name.endswith(".safetensors"):
        return list(range(len(content)))
    header = 8 + int.from_bytes(content[:8], "little")
    data = range(header, len(content), max((len(content) - header) // 100, 1))
    return [*range(16), *range(16, header, 7), *data, len(content) - 1]


def damaged(content: bytes, place: int, kind: str) -> bytes:
    """The file with one fault."""
    if kind == "cut":
        return content[:place]
    new = {"flip": content[place] ^ (1 << place % 8), "zero": 0, "newline": 10}[kind]
    return content[:place] + bytes([new]) + content[place + 1 :]


def resumed(
    path: Path, content: bytes, config: TrainConfig, corpus: Corpus, whole: dict[str, Any]
) -> Outcome:
    """Resume a copy of a run in which one file has another content."""
    own = path.parent.with_name("damaged")
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(path.parent, own)
    (own / path.name).write_bytes(content)
    before = contents_as_bytes(own)
    try:
        train(config, corpus, own, resume=True)
    except (CheckpointError, ValueError, OSError) as error:
        changed = contents_as_bytes(own) != before
        return {"fault": "it was refused, and changed" if changed else None, "said": str(error)}
    except Exception:
        return {"fault": traceback.format_exc()[-2000:]}
    differs = first_difference(contents(own), whole)
    return {"fault": differs and f"{differs} differs in silence", "said": "the same end"}


def contents_as_bytes(folder: Path) -> dict[str, bytes]:
    """Every file and its bytes."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fuzz_cases(folder: Path, count: int) -> Iterator[Case]:
    """Random command lines."""
    for number in range(count):
        yield f"fuzz {number}", lambda number=number: fuzzed(folder / "fuzz", number)


def fuzzed(folder: Path, number: int) -> Outcome:
    """One command line among files of every kind: what it did wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    surroundings = make_surroundings(folder)
    arguments = command_lines(number, surroundings)
    child = Child(arguments, folder)
    done = child.wait()
    said = "ended"
    if done is None:
        child.signal("SIGINT")  # it may have a lot to do, and then stops when it is asked to
        done, said = child.wait(), "stopped when asked"
    if done is None:
        child.signal("SIGKILL")
        child.wait()
        return {"line": arguments, "fault": "hangs"}
    lines = [line for line in done.err.splitlines() if line.startswith("unitscale: ")]
    fault = None
    if "Traceback" in done.err or done.code not in (0, 1, 2, 130):
        fault = f"exit code {done.code}: {done.err[-2000:]}"
    elif done.code and len(lines) != 1 and "Usage" not in done.err and arguments:
        fault = f"exit code {done.code}, {len(lines)} lines: {done.err[-500:]}"
    return {"line": arguments, "code": done.code, "said": said, "last": lines[-1:], "fault": fault}


def run_cases(cases: Iterator[Case], cache: Path) -> list[Outcome]:
    """The outcomes of all cases; those in the file are not run again, unless they had a fault."""
    known: dict[str, Outcome] = {}
    for line in cache.read_text().splitlines() if cache.exists() else ():
        record = json.loads(line)
        known[record["case"]] = record
    outcomes = []
    with cache.open("a") as file:
        for key, case in cases:
            outcome = known.get(key)
            if outcome is None or outcome["fault"]:
                outcome = {"case": key} | case()
                file.write(json.dumps(outcome) + "\n")
                file.flush()
                if outcome["fault"]:
                    print(f"{key}: {outcome['fault']}", flush=True)
            outcomes.append(outcome)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """Cases and faults by kind."""
    kinds = [outcome["case"].rsplit(" ", 2 if "damage" in outcome["case"] else 1)[0]
             for outcome in outcomes]  # fmt: skip
    cases, faults = Counter(kinds), Counter[str]()
    for kind, outcome in zip(kinds, outcomes, strict=True):
        faults[kind] += bool(outcome["fault"])
    rows = [f"| {kind} | {count} | {faults[kind]} |\n" for kind, count in cases.items()]
    return "| kind | cases | faults |\n| --- | --- | --- |\n" + "".join(rows)


def preload() -> None:
    """Import what commands import when they run, so that the children need not."""
    for name in PRELOADED:
        with suppress(ImportError):
            import_module(name)


def main() -> int:
    """Run the kinds that are named, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=["kill", "damage", "fuzz"])
    parser.add_argument("--folder", type=Path, default=Path("torture"))
    parser.add_argument("--kills", type=int, default=KILLS, help="of each kind of run and signal")
    parser.add_argument("--fuzzed", type=int, default=FUZZED, help="command lines")
    parser.add_argument("--stride", type=int, default=1, help="damage every so many places only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preload()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    makers = {
        "kill": lambda: kill_cases(folder, options.kills),
        "damage": lambda: damage_cases(folder, options.stride),
        "fuzz": lambda: fuzz_cases(folder, options.fuzzed),
    }
    outcomes = [
        outcome
        for kind in options.kinds
        for outcome in run_cases(makers[kind](), folder / "cases.jsonl")
    ]
    print(table(outcomes))
    return int(any(outcome["fault"] for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
