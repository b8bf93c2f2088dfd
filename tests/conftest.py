"""What every test gets: a fixed seed, one thread, the time it needs, no code of another test."""

import gc
import os
import sys
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Seed torch only where it is in use, so that torch-free tests stay instant."""
    np.random.seed(0)  # noqa: NPY002 - seeds what third parties draw; our tests pass a Generator
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
    yield
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
