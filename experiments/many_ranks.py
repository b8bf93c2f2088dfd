"""Runs of several ranks on one machine: equal to one process, killed at random, and for long.

    python experiments/many_ranks.py equal --out runs/many_ranks
    python experiments/many_ranks.py kills --out runs/many_ranks --kills 20
    python experiments/many_ranks.py soak --out runs/many_ranks --steps 20000

`equal` compares the losses of 1 rank x 8 micro-batches with 2 x 4 and 4 x 2, under DDP and FSDP2.
`kills` kills a rank, both or torchrun itself at a moment drawn at random, and resumes, until the
run is done; its log and its last checkpoint are those of a run that was left alone. `soak` reads
memory, open files and threads of each rank on the way.

All of them go on where they were stopped. What torchrun and the ranks say is in OUT/*.txt.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from unitscale.train.run_log import losses, read_log

SHARES = 8
LAYOUTS = ((1, "ddp"), (2, "ddp"), (2, "fsdp2"), (4, "ddp"), (4, "fsdp2"))
MODELS = {
    "attention": "fp32,fp32-units,fp8",
    "llama": "fp32,fp32-units,fp8",
}
SMALL = "--width 32 --depth 2 --sequence-length 32 --batch-size 8 --device cpu"


def launched(ranks: int, command: str) -> list[str]:
    """The command line of a job."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
    return [*start, "unitscale", *command.split()]


def equal(out: Path, steps: int) -> None:
    """The largest difference of a loss to that of one rank by eight."""
    print("| model | recipe | " + " | ".join(f"{r} {p}" for r, p in LAYOUTS[1:]) + " |")
    for model, recipes in MODELS.items():
        found: dict[str, dict[str, list[float]]] = {}
        for ranks, parallel in LAYOUTS:
            name = f"{model}-{parallel}-{ranks}"
            if not (out / name / "results.json").exists():
                line = f"compare --model {model} --recipes {recipes} --steps {steps} {SMALL}"
                line += f" --accumulate {SHARES // ranks} --out {out / name} --resume"
                line += (
                    f" --set clip_norm=1 --parallel {parallel}"
                    if ranks > 1
                    else " --set clip_norm=1"
                )
                with (out / f"{name}.txt").open("w") as said:
                    subprocess.run(launched(ranks, line), stdout=said, stderr=said, check=True)
            for folder in sorted((out / name / "runs").iterdir()):
                recipe = folder.name.rpartition("-")[0] or folder.name
                found.setdefault(recipe, {})[name] = losses(read_log(folder / "log.jsonl"))
        for recipe, runs in found.items():
            first, *others = runs.values()
            gaps = [max(abs(a - b) for a, b in zip(first, x, strict=True)) for x in others]
            print(f"| {model} | {recipe} | " + " | ".join(f"{gap:.1e}" for gap in gaps) + " |")


def ranks_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that torchrun has started."""
    try:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def lines_in(path: Path) -> int:
    """Lines of a log so far."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kills(out: Path, count: int, seed: int) -> None:
    """Kill a run again and again, and compare it with one that was left alone."""
    line = f"train --recipe fp8 --steps 400 {SMALL} --parallel fsdp2 --accumulate 2"
    line += " --set checkpoint_every=2 --set eval_every=100 --states coat --resume"
    whole, broken, notes = out / "whole", out / "broken", out / "kills.json"
    if not (whole / "result.json").exists():
        with (out / "whole.txt").open("w") as said:
            job = launched(2, f"{line} --out {whole}")
            subprocess.run(job, stdout=said, stderr=said, check=True)
    done: list[dict[str, Any]] = json.loads(notes.read_text()) if notes.exists() else []
    draw = random.Random(seed + len(done))
    while not (broken / "result.json").exists():
        with (out / "broken.txt").open("a") as said:
            low = lines_in(broken / "log.jsonl")
            begin = time.monotonic()
            process = subprocess.Popen(
                launched(2, f"{line} --out {broken}"), stdout=said, stderr=said
            )
            while process.poll() is None and (now := lines_in(broken / "log.jsonl")) <= max(low, 1):
                low = min(low, now)  # it is cut to where the checkpoint was written
                if time.monotonic() - begin > 300:
                    raise SystemExit("the run does not go on")
                time.sleep(0.02)
            if len(done) < count and process.poll() is None:
                time.sleep(draw.uniform(0.0, 1.5))
                if len(done) % 2:  # every second one while a checkpoint is written
                    await_half(process, broken)
                done.append(killed(process, draw, broken))
                notes.write_text(json.dumps(done))
                print(f"kill {len(done)}: {done[-1]}", flush=True)
            process.wait()
            wait_for_ranks(done[-1].get("pids", []) if done else [])
    same = losses_equal(whole, broken) and tensors_equal(whole, broken)
    halves = sum(one["half_written"] for one in done)
    print(
        f"{len(done)} kills, {halves} of them while a checkpoint was written; the log and the last "
        f"checkpoint are {'bit-equal to' if same else 'NOT those of'} a run that was left alone"
    )


def await_half(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until a checkpoint is in the making."""
    while process.poll() is None and not any((folder / "checkpoints").glob("*.tmp")):
        time.sleep(0.001)


def killed(process: subprocess.Popen[bytes], draw: random.Random, folder: Path) -> dict[str, Any]:
    """Kill something of a job with signal 9; what, and in the middle of what."""
    ranks = ranks_of(process)
    half = any((folder / "checkpoints").glob("*.tmp"))
    what = draw.choice(["rank 0", "rank 1", "both ranks", "torchrun and all ranks"])
    chosen = {"rank 0": ranks[:1], "rank 1": ranks[1:2]}.get(what, ranks)
    for pid in [*([process.pid] if what.startswith("torchrun") else []), *chosen]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    half = any((folder / "checkpoints").glob("*.tmp"))
    return {
        "what": what,
        "half_written": half,
        "lines": lines_in(folder / "log.jsonl"),
        "pids": ranks,
    }


def wait_for_ranks(pids: list[int]) -> None:
    """Until none of them runs: a folder is held by the process that writes to it."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    while any(map(runs, pids)):
        time.sleep(0.05)


def losses_equal(a: Path, b: Path) -> bool:
    """Whether the losses of two runs have the same bits, those of validation too."""
    found = []
    for folder in (a, b):
        records = read_log(folder / "log.jsonl")
        found.append((losses(records), [r["valid_loss"] for r in records if "valid_loss" in r]))
    return found[0] == found[1]


def tensors_equal(a: Path, b: Path) -> bool:
    """Whether the newest checkpoints of two runs have the same bits."""
    first, second = (tensors_of(max((f / "checkpoints").glob("step-*"))) for f in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole."""
    reader = FileSystemReader(path)
    entries = reader.read_metadata().state_dict_metadata
    found = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in entries.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(found, storage_reader=reader, no_dist=True)
    return found


def soak(out: Path, steps: int, minutes: float) -> None:
    """Memory, files and threads of two ranks, from after their first steps to the end.

    After so many minutes the job is told to stop, and goes on at the next call.
    """
    folder = out / f"soak-{steps}"
    line = f"train --recipe fp8 --steps {steps} {SMALL} --parallel fsdp2 --out {folder} --resume"
    line += " --set checkpoint_every=100 --set eval_every=100 --states coat"
    with (out / "soak.txt").open("a") as said:
        process = subprocess.Popen(launched(2, line), stdout=said, stderr=said)
        samples = list(sampled(process, folder, time.monotonic() + 60 * minutes))
    (out / "soak.json").write_text(json.dumps(samples))
    print(f"exit code {process.returncode}, {lines_in(folder / 'log.jsonl')} lines in the log")
    settled = samples[len(samples) // 5 :]
    for name in ("rss_mib", "files", "threads", "in_folder"):
        at = [max(sample[name]) for sample in settled]
        if at:
            print(
                f"{name}: {at[0]:g} at first, {at[len(at) // 2]:g} half way, {at[-1]:g} at the end"
            )


def sampled(
    process: subprocess.Popen[bytes], folder: Path, until: float
) -> Iterator[dict[str, list[float]]]:
    """What the ranks of a job hold, every two seconds while they make steps."""
    while process.poll() is None:
        time.sleep(2)
        if time.monotonic() > until:
            process.terminate()
            process.wait()
            return
        ranks = ranks_of(process)
        if lines_in(folder / "log.jsonl") < 20 or not ranks:
            continue
        try:
            status = [Path(f"/proc/{pid}/status").read_text() for pid in ranks]
            files = [float(len(list(Path(f"/proc/{pid}/fd").iterdir()))) for pid in ranks]
        except OSError:  # it has just ended
            continue
        if not all("VmRSS" in text for text in status):
            continue
        found = [dict(one.split(":", 1) for one in text.splitlines()) for text in status]
        yield {
            "rss_mib": [int(one["VmRSS"].split()[0]) / 1024 for one in found],
            "threads": [float(one["Threads"]) for one in found],
            "files": files,
            "in_folder": [float(sum(1 for _ in folder.rglob("*")))],
        }


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["equal", "kills", "soak"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=600.0, help="of a soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="begin anew")
    options = parser.parse_args()
    if options.again:
        shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.what == "equal":
        equal(options.out, options.steps or 40)
    elif options.what == "kills":
        kills(options.out, options.kills, options.seed)
    else:
        soak(options.out, options.steps or 20_000, options.minutes)


if __name__ == "__main__":
    main()
