"""A process group of one rank, in the process of the test: DDP and its hooks work as with many."""

import gc
from collections.abc import Iterator

import pytest

from processes import group


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with group(0, 1, tmp_path_factory.mktemp("group")):
        yield
        gc.collect()  # wrappers, before the group that they use
