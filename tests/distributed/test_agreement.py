"""What ranks say to each other, where there is one."""

import pytest
import torch.distributed as dist

from unitscale.distributed.agreement import agree, short


@pytest.fixture
def four_ranks(monkeypatch):
    """A group whose ranks answer what the test says."""
    answers: list = []

    def gather(found: list, mine: object, group: object) -> None:
        found[:] = [mine if answer is None else answer for answer in answers]

    monkeypatch.setattr(dist, "get_world_size", lambda group: len(answers))
    monkeypatch.setattr(dist, "all_gather_object", gather)
    return answers


def test_ranks_that_say_the_same_agree(four_ranks) -> None:
    four_ranks += [None, ({"a": "1"}, None)]
    agree("caller", {"a": "1"}, None, None)


def test_the_rank_that_differs_is_named(four_ranks) -> None:
    four_ranks += [None, ({"a": "1"}, None), ({"a": "2"}, None)]
    with pytest.raises(ValueError, match=r"caller: a differs between ranks: 1 on rank 0, 2 on ra"):
        agree("caller", {"a": "1"}, None, None)
    four_ranks[:] = [None, ({}, None)]
    with pytest.raises(ValueError, match="1 on rank 0, None on rank 1; pass the same on every"):
        agree("caller", {"a": "1"}, None, None)


def test_a_fault_is_told_on_its_rank_and_on_others(four_ranks) -> None:
    four_ranks += [None, ({"a": "2"}, "b is wrong")]
    with pytest.raises(ValueError, match="caller: rank 1 refused: b is wrong"):
        agree("caller", {"a": "1"}, None, None)
    with pytest.raises(ValueError, match="caller: c is wrong"):
        agree("caller", {"a": "1"}, "c is wrong", None)


def test_long_texts_are_cut() -> None:
    assert short("x" * 300) == "x" * 200 + "..."
    assert short("short") == "short"
