"""The list of cases that run with `-m slow` alone names tests, and the suite refuses others."""

from types import SimpleNamespace

import pytest

import conftest
from house.tree import REPOSITORY

LISTED = [x for x in conftest.SLOW_CASES.read_text().splitlines() if x and x[0] != "#"]


def test_every_case_is_of_a_test_that_there_is():
    for line in LISTED:
        path, _, name = line.partition("::")
        assert f"def {name.partition('[')[0]}(" in (REPOSITORY / path).read_text(), line


def test_a_case_that_is_gone_is_an_error():
    path = LISTED[0].partition("::")[0]
    items = [SimpleNamespace(nodeid=f"{path}::another", add_marker=pytest.fail)]
    with pytest.raises(pytest.UsageError, match=r"slow_cases\.txt lists what is no test"):
        conftest.pytest_collection_modifyitems(SimpleNamespace(args=["tests"]), items)


def test_a_case_that_is_listed_is_slow():
    marks = []
    items = [SimpleNamespace(nodeid=LISTED[0], add_marker=marks.append)]
    conftest.pytest_collection_modifyitems(SimpleNamespace(args=["a::b"]), items)
    assert [mark.name for mark in marks] == ["slow"]
