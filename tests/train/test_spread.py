"""How a batch is cut: by numbers alone, without a process more."""

from typing import Any

import pytest

from train.tiny import tiny_config
from unitscale.train import Spread
from unitscale.train.spread import WHOLE


def all_rows(ranks: int, micro_batches: int) -> list[int]:
    """The windows of a batch of 16, in the order in which ranks and their passes have them."""
    windows = list(range(16))
    spreads = [Spread(ranks=ranks, rank=r, micro_batches=micro_batches) for r in range(ranks)]
    return [w for s in spreads for m in range(micro_batches) for w in windows[s.rows(16, m)]]


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (1, 8), (2, 4), (4, 2), (8, 1)])
def test_shares_are_the_batch_in_its_order(ranks: int, micro_batches: int) -> None:
    assert all_rows(ranks, micro_batches) == list(range(16))


def test_a_share_has_its_seed_on_whichever_rank_it_is() -> None:
    seeds = [
        [
            Spread(ranks=ranks, rank=r, micro_batches=8 // ranks).seed(5, 3, m)
            for r in range(ranks)
            for m in range(8 // ranks)
        ]
        for ranks in (1, 2, 4, 8)
    ]
    assert all(found == seeds[0] for found in seeds)
    assert len({*seeds[0], Spread().seed(5, 4, 0), Spread().seed(6, 3, 0)}) == 10


def test_factors_are_exactly_one_for_a_whole_batch() -> None:
    for is_unit_scaled in (False, True):
        assert WHOLE.loss_factor(is_unit_scaled=is_unit_scaled) == 1.0
        assert WHOLE.gradient_factor(is_unit_scaled=is_unit_scaled) == 1.0
    assert WHOLE.described() == {}


def test_factors_count_all_shares() -> None:
    spread = Spread(ranks=2, micro_batches=8)
    assert spread.loss_factor(is_unit_scaled=False) == 1 / 16
    assert spread.gradient_factor(is_unit_scaled=False) == 2  # of a mean over ranks
    assert spread.gradient_factor(is_unit_scaled=True) == 2 / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batches": 0}, "accumulate is 0; expected an integer from 1 to"),
        ({"micro_batches": True}, "accumulate is True"),
        ({"parallel": "tp"}, "parallel is 'tp'; expected one of ddp, fsdp2"),
        ({"ranks": 2, "rank": 2}, "rank is 2; expected one from 0 to 1"),
    ],
)
def test_what_is_no_spread_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spread(**options)


def test_a_run_that_cannot_be_cut_is_refused() -> None:
    spread = Spread(ranks=3)
    with pytest.raises(ValueError, match=r"has 4 windows, which 3 ranks x 1 .* multiple of 3"):
        spread.check(tiny_config())
    with pytest.raises(ValueError, match="record_every is 2, and tensors are recorded of a whole"):
        Spread(micro_batches=2).check(tiny_config(record_every=2))
    Spread(ranks=2).check(tiny_config())
