"""A process group of one rank, in the process of the test: DDP and its hooks work as with many."""

from collections.abc import Iterator

import pytest

from processes import group_of_one


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with group_of_one(tmp_path_factory.mktemp("group")):
        yield
