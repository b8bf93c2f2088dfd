"""A process of a sweep: it trains the runs that it is given, one after the other.

It is told of each by a line of JSON on stdin, and answers with lines of JSON on what was its
stdout. When stdin ends, so does it, at once: then whoever started it is gone, even by `kill -9`.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

EVERY_S = 0.5
"""Seconds between two words on the progress of a run."""

PATIENCE_S = 60.0
"""How long a run's folder may still be held by the process of a sweep that was killed."""


def main() -> None:
    """Work until stdin ends or a run fails: what a failure left in memory helps no other run."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a model of one's own prints is no answer
    tasks: queue.Queue[str] = queue.Queue()
    threading.Thread(target=receive, args=(tasks,), daemon=True).start()
    first = json.loads(tasks.get())
    import torch

    from unitscale.data import open_corpus

    torch.set_num_threads(first["threads"])
    corpus = open_corpus(first["data"])
    is_alive = True
    while is_alive:
        task = json.loads(tasks.get())
        is_alive = work(task, corpus, answers)


def receive(tasks: "queue.Queue[str]") -> None:
    """Hand on the lines of stdin, and end the process with them.

    Every file is put in place in one step, so that nothing is left half written.
    """
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)


def work(task: dict[str, Any], corpus: Any, answers: TextIO) -> bool:
    """Make one run and say how it ended; whether this process may go on."""
    from unitscale.train import TrainConfig
    from unitscale.train.initial import ModelError
    from unitscale.train.run_folder import CheckpointError

    def say(event: str, **more: Any) -> None:
        answers.write(json.dumps({"event": event} | more) + "\n")
        answers.flush()

    try:
        train_when_free(TrainConfig.from_json(task["config"]), corpus, Path(task["folder"]), say)
    except KeyboardInterrupt:
        say("stopped")
        return False
    except (CheckpointError, ModelError, OSError) as error:
        say("failed", reason=one_line(str(error)))
        return False
    except BaseException as error:
        traceback.print_exc()
        say("failed", reason=one_line(f"{type(error).__name__}: {error}"))
        return False
    say("done")
    return True


def train_when_free(config: Any, corpus: Any, folder: Path, say: Any) -> None:
    """Train, after a process that is ending has let go of the folder.

    Raises:
        As `train`; InUseError: the folder was held for too long.
    """
    from unitscale.sweep.cpu import counting_cpu
    from unitscale.train.lock import InUseError
    from unitscale.train.loop import train

    spoke = time.monotonic()

    def on_record(record: dict[str, Any]) -> None:
        nonlocal spoke
        if "loss" in record and time.monotonic() - spoke > EVERY_S:
            spoke = time.monotonic()
            say("step", step=record["step"])

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with counting_cpu(folder):
                train(config, corpus, folder, resume=True, on_record=on_record)
        except InUseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def one_line(text: str) -> str:
    """The first line that says something, without what would break a row."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[0][:500] if lines else "it gave no reason"


if __name__ == "__main__":
    main()
