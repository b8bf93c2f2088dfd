"""Ctrl-C: the first asks, the second acts."""

import signal
import threading
from collections.abc import Iterator

import pytest

from unitscale.train.interrupt import PASSED_ON_S, deferred_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with deferred_interrupt() as stop:
        assert not stop.is_made
        signal.raise_signal(number)
        assert stop.is_made
    assert signal.getsignal(number) is before


@pytest.fixture(autouse=True)
def python_handler() -> Iterator[None]:
    """Python's own handler: a shell starts its background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_signal_acts_at_once() -> None:
    with deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_torchrun_passes_on_is_the_same_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    now = [100.0]
    monkeypatch.setattr("unitscale.train.interrupt.time.monotonic", lambda: now[0])
    with deferred_interrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        now[0] += PASSED_ON_S - 0.1
        signal.raise_signal(signal.SIGINT)  # nothing: the loop has been asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_made
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_are_left_alone() -> None:
    seen = []

    def body() -> None:
        with deferred_interrupt() as stop:
            seen.append(stop.is_made)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
