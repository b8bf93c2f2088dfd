"""What every test gets: a fixed seed, one thread, the time it needs, no code of another test."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported; pytest-xdist runs one process per core, so each computes in one thread
# and compiles by itself (inductor would start a pool of compilers in each).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import hang

# A slow or busy machine takes its time over an example, and that is no fault of what is tested. The
# examples are the same in every run, as all that is random in a test.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")


# torch, transformers and what compilers keep are millions of objects, and each full collection
# walks them all: a fifth of the suite's time. What is freed by count is freed as ever.
gc.set_threshold(100_000, 50, 100)


def pytest_configure() -> None:
    """Keep the standard error of the whole run, which is another file while a test runs."""
    hang.watch(os.dup(2))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ten minutes, or what the test asks for; the slowest takes half a minute."""
    marker = item.get_closest_marker("timeout")
    hang.end_after(marker.args[0] if marker else 600)
    try:
        return (yield)
    finally:
        hang.end_after(0)


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and to wait until the disk has written takes milliseconds a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def pytest_collection_finish() -> None:
    """Set aside what was imported: no collection looks at it again, and tests call for hundreds."""
    gc.freeze()


SLOW_CASES = Path(__file__).with_name("slow_cases.txt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the listed cases slow; one that a whole file does not have is an error."""
    lines = SLOW_CASES.read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
    if any("::" in argument for argument in config.args):
        return
    files, names = {item.nodeid.partition("::")[0] for item in items}, {x.nodeid for x in items}
    if gone := sorted(x for x in listed - names if x.partition("::")[0] in files):
        raise pytest.UsageError(f"{SLOW_CASES.name} lists what is no test: {', '.join(gone)}")


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Seed torch only where it is in use, so that torch-free tests stay instant."""
    np.random.seed(0)  # noqa: NPY002 - seeds what third parties draw; our tests pass a Generator
    if torch := sys.modules.get("torch"):
        # Of `torch.manual_seed`, what the machine has: for every other kind of device that keeps
        # the stack of its caller, which takes longer than many a test.
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(0)
    if guards := sys.modules.get("torch._dynamo.guards"):
        guards.profile_guard_manager = no_latency
    yield
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()


def no_latency(*_: object) -> float:
    """In place of what empties the caches of the processor, to log how long a graph's guards take.

    That is 20 ms for each graph of each test. Seen on torch 2.13.
    """
    return 0.0
