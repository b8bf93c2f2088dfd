"""Scales over a run: powers of two in the right place, measured when they should be."""

import torch

from unitscale.distributed import AutomaticScale, CurrentScale, RootScale, UnitScale
from unitscale.distributed.scale_state import NOTHING_FOUND, Found, ScaleState
from unitscale.formats import E4M3FN

CPU = torch.device("cpu")


def found(log2: list[int] | None, *trailers: list[int], names: str = "ab", numel: int = 1000):
    tensor = None if log2 is None else torch.tensor(log2, dtype=torch.int32)
    return Found(names, [numel] * len(names), tensor, torch.tensor(trailers, dtype=torch.int32))


def test_a_unit_puts_the_rms_of_the_mean_at_its_target() -> None:
    for target in (-3, 0, 2):
        state = ScaleState(UnitScale(target_log2=target), E4M3FN, ranks=2)
        mean = torch.cat([torch.full((100,), 2.0**-9), torch.full((50,), 1000.0)])
        amax = torch.tensor([2.0**-9, 1000.0])
        log2 = state.measure(mean, [100, 50], [True, True], amax)
        assert log2.tolist() == [target + 9, target - 10]  # 1000 is next to 2**10


def test_a_unit_leaves_a_binade_above_the_largest_element_of_any_rank() -> None:
    state = ScaleState(UnitScale(), E4M3FN, ranks=2)
    mean = torch.full((100,), 1.0)
    (log2,) = state.measure(mean, [100], [True], torch.tensor([200.0])).tolist()
    assert log2 == 0  # 200 is below 448 / 2, and at the target of 2**2 it would be 800
    (log2,) = state.measure(mean, [100], [True], torch.tensor([225.0])).tolist()
    assert log2 == -1


def test_nothing_is_measured_from_zero_or_what_is_not_finite() -> None:
    for mean in (torch.zeros(4), torch.tensor([1.0, torch.nan, 1, 1])):
        state = ScaleState(UnitScale(), E4M3FN, ranks=2)
        log2 = state.measure(mean, [4], [True], torch.tensor([1.0]))
        assert log2.tolist() == [NOTHING_FOUND]
        state.begin()
        state.pending.append(found(log2.tolist(), [0, 0], names="a"))
        state.begin()
        assert state.log2 == {}
        assert state.wants("a") == [True]  # pass 1 of the geometric schedule, and whenever after
        state.passes = 3
        state.begin()
        assert state.wants("a") == [True]


def test_tiny_and_huge_gradients_have_units_that_float32_holds() -> None:
    state = ScaleState(UnitScale(), E4M3FN, ranks=2)
    for size in (1e-44, 1e-30, 1e38):
        mean = torch.full((10,), size)
        (log2,) = state.measure(mean, [10], [True], mean[:1].clone()).tolist()
        state.log2["a"] = log2
        inverse = state.inv_scales("a", [False], None, CPU)
        assert (1 / inverse).isfinite()
        assert inverse.isfinite() and inverse > 0  # noqa: PT018
        assert (mean * inverse).max() <= E4M3FN.max


def test_units_are_measured_by_schedule_on_request_and_after_saturation() -> None:
    state = ScaleState(UnitScale(remeasure=[0, 5]), E4M3FN, ranks=2)
    state.begin()
    assert state.wants("ab") == [True, True]
    state.pending.append(found([3, 4], [0, 0, 0], [0, 0, 0]))
    assert state.begin() == {}
    assert state.log2 == {"a": 3, "b": 4}
    assert state.wants("ab") == [False, False]
    assert state.inv_scales("ab", [False, False], None, CPU).tolist() == [8, 16]
    state.pending.append(found(None, [0, 0, 7], [0, 0, 1]))  # b saturated, on both ranks
    assert state.begin() == {"b": 8}
    assert state.wants("ab") == [False, True]
    amax = torch.tensor([1.0, 1.0])
    # The other one keeps its unit, so that a unit does not depend on who shares a bucket.
    assert state.inv_scales("ab", [False, True], amax, CPU).tolist() == [8, 256]
    state.pending.append(found([NOTHING_FOUND, 6], [0, 0, 0], [1, 0, 0]))  # rank 1 asks
    assert state.begin() == {}
    assert state.wants("ab") == [True, True]
    state.pending.append(found([5, 6], [0, 0, 0], [0, 0, 0]))
    state.begin()
    assert state.wants("ab") == [False, False]
    state.begin()
    assert state.wants("ab") == [True, True]  # pass 5


def test_units_that_are_given_are_never_measured() -> None:
    state = ScaleState(UnitScale(remeasure="never", target_log2=3), E4M3FN, ranks=2)
    state.begin()
    state.pending.append(found(None, [1, 5, 5]))
    state.begin()
    assert state.wants("ab") == [False, False]
    assert state.inv_scales("ab", [False, False], None, CPU).tolist() == [8, 8]


def test_current_scales_are_the_largest_at_which_none_saturates() -> None:
    amax = torch.tensor([448.0, 449.0, 1.0])
    wants = [True] * 3
    for rule, wanted in [
        (CurrentScale(), [1, 0.5, 256]),
        (CurrentScale(margin=2), [0.25, 0.125, 64]),
        (RootScale(), [0.5, 0.25, 128]),
    ]:
        state = ScaleState(rule, E4M3FN, ranks=4)
        assert state.wants("abc") == wants
        assert state.inv_scales("abc", wants, amax, CPU).tolist() == wanted


def test_mu_halves_at_once_and_doubles_slowly() -> None:
    state = ScaleState(AutomaticScale(share=1e-3, doubling=10), E4M3FN, ranks=2)
    state.begin()
    assert state.wants("ab") == [True, True]
    log2 = state.measure(torch.ones(4), [2, 2], [True, True], torch.tensor([1.0, 448.0]))
    assert log2.tolist() == [8, 0]
    state.pending.append(found(log2.tolist(), [0] * 5, [0] * 5))
    state.begin()
    assert state.wants("ab") == [False, False]
    # Of 2 x 1000 elements, 2 are the share that is let pass; b has 3.
    state.pending.append(found(None, [0, 0, 0, 2, 1], [0, 0, 0, 0, 2]))
    state.begin()
    assert state.log2 == {"a": 8.1, "b": -1}
    for _ in range(10):
        state.pending.append(found(None, [0] * 5, [0] * 5))
        state.begin()
    assert abs(state.log2["b"]) < 1e-9
