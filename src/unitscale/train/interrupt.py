"""Ctrl-C between two steps rather than inside one."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

PASSED_ON_S = 10.0
"""Ctrl-C reaches every process of a terminal, and torchrun passes it on to those that had it: this
is one request. It does so at once, but on a busy machine that takes its time."""


@dataclass
class StopRequest:
    """Whether the user, or the machine's owner, has asked the run to stop."""

    is_made: bool = False


@contextmanager
def deferred_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request that the loop reads between its steps.

    A step stopped halfway leaves parameters of which some are updated. A second signal acts at
    once, as without this; but not within `PASSED_ON_S` of the first where torchrun has started the
    process. Outside the main thread Python delivers no signals: nothing is changed.
    """
    request = StopRequest()
    first: list[float] = []
    same_for = PASSED_ON_S if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first.append(now)
        if request.is_made and now - first[0] >= same_for:
            for one, handler in previous.items():
                signal.signal(one, handler)
            signal.raise_signal(number)
        request.is_made = True

    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
