"""Workers side by side: each is a process, gets one run at a time, and is replaced if it dies."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from unitscale.sweep.cores import Share
from unitscale.sweep.point import Point
from unitscale.train.interrupt import StopRequest

GRACE_S = 120.0
"""How long a step and a checkpoint may take after the request to stop."""

POLL_S = 0.2
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""By which libraries choose their threads before anyone can tell them."""


class Ended(NamedTuple):
    """A point whose run has ended: well, or for a reason."""

    point: Point
    reason: str | None


class StoppedError(Exception):
    """The sweep was asked to stop, and every worker has left a checkpoint."""


class Worker:
    """One process, what it works at, and the thread that listens to it."""

    def __init__(
        self, heard: "queue.Queue[tuple[Worker, str | None]]", log: Any, first: dict[str, Any]
    ) -> None:
        own = dict.fromkeys(THREADS, str(first["threads"]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unitscale.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | own,
            # Ctrl-C reaches all that a terminal runs: the sweep alone is to hear it.
            start_new_session=True,
        )
        self.point: Point | None = None
        self.reason: str | None = None
        self.ear = threading.Thread(target=self.listen, args=(heard,), daemon=True)
        self.ear.start()
        self.tell(first)

    def listen(self, heard: "queue.Queue[tuple[Worker, str | None]]") -> None:
        """Hand on every line, and None at the end."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                heard.put((self, line))
        heard.put((self, None))

    def tell(self, message: dict[str, Any]) -> None:
        """Send a line. A process that is gone does not hear it; its end is heard instead."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def give(self, point: Point, out: Path) -> None:
        """Have it make a run."""
        self.point, self.reason = point, None
        self.tell({"config": point.config.to_json(), "folder": str(point.folder(out))})

    def end(self) -> None:
        """End the process, whatever it does, and close what leads to it."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.ear.join()

    def last_words(self) -> str:
        """Why a process ended that did not say."""
        code = self.process.wait()
        how = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = signal.Signals(-code).name
            if -code == getattr(signal, "SIGKILL", None):
                how += ", as when memory runs out"
        return f"its process ended by {how}; workers.log has what it said"


def run_points(
    points: Sequence[Point],
    out: Path,
    *,
    data: Path | None,
    share: Share,
    log: Path,
    stop: StopRequest,
    on_step: Callable[[Point, int], None] = lambda point, step: None,
) -> Generator[Ended]:
    """Make the runs of these points, `share.workers` at a time; yield each as it ends.

    A run that fails, or takes its process with it, is one that ended for a reason: the others go
    on. Whatever ends this function ends the workers.

    Args:
        log: the file to which the workers' stderr is added.
        stop: once it is made, every worker finishes its step, leaves a checkpoint, and ends.
        on_step: called now and then with the step that a run has come to.

    Raises:
        StoppedError: `stop` was made.
    """
    waiting = deque(points)
    heard: queue.Queue[tuple[Worker, str | None]] = queue.Queue()
    first = {"threads": share.threads, "data": None if data is None else str(data)}
    with log.open("ab") as errors:
        workers = [Worker(heard, errors, first) for _ in range(min(share.workers, len(waiting)))]
        try:
            for worker in workers:
                worker.give(waiting.popleft(), out)
            while any(worker.point for worker in workers):
                if stop.is_made:
                    wind_down(workers)
                    raise StoppedError
                try:
                    worker, line = heard.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                answer: dict[str, Any] = {"event": "ended"} if line is None else json.loads(line)
                point = worker.point
                if answer["event"] == "step" and point is not None:
                    on_step(point, answer["step"])
                elif answer["event"] == "failed":
                    worker.reason = answer["reason"]  # its process ends next
                elif answer["event"] == "done" and point is not None:
                    worker.point = None
                    yield Ended(point, None)
                    if waiting and not stop.is_made:
                        worker.give(waiting.popleft(), out)
                elif answer["event"] == "ended":
                    reason = worker.reason or worker.last_words()
                    worker.point = None
                    if waiting and not stop.is_made:
                        workers[workers.index(worker)] = new = Worker(heard, errors, first)
                        new.give(waiting.popleft(), out)
                    worker.end()
                    if point is not None and not stop.is_made:
                        yield Ended(point, reason)
            if waiting:
                raise StoppedError
        finally:
            for worker in workers:
                worker.end()


def wind_down(workers: Sequence[Worker]) -> None:
    """Ask every worker to stop, and wait until those at work have ended."""
    busy = [worker for worker in workers if worker.point is not None]
    for worker in busy:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for worker in busy:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, deadline - time.monotonic()))
