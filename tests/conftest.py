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
        torch.manual_seed(0)
    yield
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
