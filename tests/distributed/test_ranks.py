"""Gradients of 2 and 4 ranks, DDP's and FSDP2's: what `four_ranks` found."""

from typing import Any

import pytest
import torch
from torch import nn

from distributed.four_ranks import ALL, RANKS, SHAPES, mean_of, work
from distributed.grid import assert_few_bits, relative_error
from processes import work_together
from unitscale.distributed import fp8_all_gather, fp8_reduce_scatter
from unitscale.formats import BF16, E4M3FN, E5M2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    work_together(work, folder, count=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def test_four_ranks_average_within_two_roundings(found) -> None:
    """On Gaussian values a rounding has the error 0.0265 in E4M3FN and 0.0526 in E5M2."""
    for name, wanted, band in [
        ("unit", 0.0375, 0.002),
        ("current", 0.0375, 0.002),
        ("automatic", 0.0375, 0.002),
        ("root", 0.0375, 0.002),
        ("E5M2", 0.075, 0.004),
        ("BF16 mean", 0.0265, 0.0015),
        ("stochastic", 0.0375 * 2**0.5, 0.004),  # a variance of d(1 - d), not d**2 / 3, below 1/2
    ]:
        gradient, report, _ = found[0][name]
        errors = [relative_error(g, mean_of(RANKS, step)) for step, g in enumerate(gradient)]
        assert errors == pytest.approx([wanted] * 3, abs=band), name
        assert report.saturated <= (3 * len(gradient[0]) * 1e-4 if name == "automatic" else 0)


def test_averages_are_equal_to_the_bit_on_all_ranks(found) -> None:
    for name in ALL:
        for other in found[1:]:
            assert all(map(torch.equal, found[0][name][0], other[name][0])), name
            assert other[name][2] == found[0][name][2]  # the scales, too
        assert len({one[name][1].saturated for one in found}) == 1


def test_averages_are_the_same_when_taken_again(found) -> None:
    one = found[0]
    assert all(map(torch.equal, one["unit"][0], one["unit again"][0]))
    assert all(map(torch.equal, one["stochastic"][0], one["stochastic again"][0]))
    assert not any(map(torch.equal, one["stochastic"][0], one["other seed"][0]))


def test_averages_come_in_8_bits(found) -> None:
    for name in ALL:
        fmt = E5M2 if name == "E5M2" else BF16 if name == "BF16 mean" else E4M3FN
        if name not in ("root", "automatic"):  # whose scales are no powers of two
            for gradient in found[0][name][0]:
                assert_few_bits(gradient, fmt)
    with pytest.raises(AssertionError, match="more bits than E4M3FN"):
        assert_few_bits(found[0]["BF16 mean"][0][0], E4M3FN)


def test_the_error_is_that_of_two_ranks(found) -> None:
    """Not quite: means of two payloads often lie halfway between two values of the format.

    Of a spacing d, such a tie has the error d**2 / 4 and occurs for half of the elements whose two
    payloads share a binade, so the second rounding has d**2 / 8 at most, where d**2 / 12 is usual.
    """
    most = 0.0265 * (1 + 12 / 8) ** 0.5
    for step, gradient in enumerate(found[0]["2 ranks"][0]):
        assert 0.0355 < relative_error(gradient, mean_of(2, step)) < most


def test_an_rms_near_the_end_of_the_format_saturates_and_is_counted(found) -> None:
    gradient, report, _ = found[0]["too high"]
    assert report.saturated > 100
    assert max(relative_error(g, mean_of(RANKS, step)) for step, g in enumerate(gradient)) > 0.1


def test_bytes_on_the_wire_are_those_of_the_formula(found) -> None:
    elements, tensors = sum(torch.Size(s).numel() for s in SHAPES), len(SHAPES)
    for name, of_mean, ranks, maxima in [
        ("unit", 1, 4, 6),  # three passes, of which all measure: amaxes and units
        ("current", 1, 4, 3),
        ("root", 1, 4, 3),
        ("BF16 mean", 2, 4, 6),
        ("2 ranks", 1, 2, 6),
    ]:
        report = found[0][name][1]
        calls, others = report.calls, ranks - 1
        # Shards are filled up to whole elements, once for each bucket.
        payload = 3 * elements / ranks * (1 + of_mean) * others
        filling = calls * (1 + of_mean) * others
        trailers = others * 4 * (2 * calls + 3 * tensors)
        scales = 2 * others / ranks * 4 * tensors * maxima
        assert payload <= report.bytes_sent - trailers - scales <= payload + filling + calls
        assert report.bf16_ring_bytes == pytest.approx(3 * elements * 4 * others / ranks, abs=calls)
        assert report.elements == 3 * elements
    for name in ("unit", "current"):
        report = found[0][name][1]
        assert 0.5 < report.bytes_sent / report.bf16_ring_bytes < 0.53


def test_what_is_not_finite_on_one_rank_is_nan_on_all(found) -> None:
    at = 3 * SHAPES[0][1] + 5
    for by_scale in zip(*(one["not finite"] for one in found), strict=True):
        for one in by_scale:
            assert [g[at].isnan().item() for g in one] == [False, True, True, False]
            for g in one:
                assert g[:at].isfinite().all()
                assert g[at + 1 :].isfinite().all()
            # The scales are those of before: the rest of the gradient has not changed.
            assert torch.equal(one[1][at + 1 :], one[3][at + 1 :])


def test_accumulated_gradients_are_exchanged_once(found) -> None:
    gradient, report = found[0]["no_sync"]
    assert report.passes == 1
    exact = mean_of(RANKS, 0) + mean_of(RANKS, 1)
    assert relative_error(gradient, exact) == pytest.approx(0.0375, abs=0.002)


def test_gradients_of_16_bits_are_averaged_alike(found) -> None:
    for dtype, gradient in found[0]["16 bits"].items():
        assert gradient.dtype == dtype
        error = relative_error(gradient.float(), mean_of(RANKS, 0))
        assert error == pytest.approx(0.0375, abs=0.002)


def test_ranks_that_differ_are_told_of_it_everywhere(found) -> None:
    wanted = [
        "format differs between ranks: E4M3FN on rank 0, E5M2 on rank 2",
        "target_log2=0, remeasure='geometric') on rank 0, UnitScale(target_log2=1",
        "rounding is 'up'; expected 'nearest' or 'stochastic'",
        "seed differs between ranks: 0 on rank 0, 1 on rank 3",
    ]
    for one in found:
        for text, message in zip(wanted, one["refused"], strict=True):
            assert text in message
            assert "\n" not in message
    assert "rank 3 refused: rounding" in found[0]["refused"][2]
    for message, text in zip(
        found[1]["subset"],
        [
            r"on ranks [0, 1] of 4, and torch makes a process group in all ranks together; pass",
            "group has ranks [0, 1] and is that of the model; expected another",
            "group has ranks [0, 1, 2, 3]; expected another group of the model's ranks, [0, 1]",
        ],
        strict=True,
    ):
        assert text in message
    for one in found:
        assert "state differs between ranks" in one["states"]
        assert "ranks 0 and 1 cast their gradients at different scales in pass 1" in one["diverged"]


def test_one_rank_may_ask_for_a_measurement(found) -> None:
    for one in found:
        first, second, third, fourth, fifth = one["remeasured"]
        assert first == second == third < fourth == fifth


def test_training_ends_where_float32_does(found) -> None:
    """Each step errs by 4 % in a direction of its own, so the way of 50 steps by 4 % / sqrt(50)."""
    for one in found[:2]:
        (exact, _), (losses, report) = one["trained"]
        assert exact[-1] < 0.5 * exact[0]
        way = exact[0] - exact[-1]
        assert losses[-1] == pytest.approx(exact[-1], abs=0.04 / 50**0.5 * way)
        assert losses != exact
        assert report.saturated == 0
        assert report.passes == 50


@pytest.mark.parametrize("mesh", ["4", "2 x 2"])
def test_sharded_gradients_are_scattered_within_one_rounding(found, mesh: str) -> None:
    """On every rank the same, and within a rounding of those of FSDP2 by itself."""
    for one in found:
        full, ours = one["sharded"][mesh]["full"], one["sharded"][mesh]["gradients"]
        assert torch.equal(ours["grads"], found[0]["sharded"][mesh]["gradients"]["grads"])
        # Errors of ranks are independent, gradients of one model are not: half of 0.0265 on four.
        assert 0.009 < relative_error(ours["grads"], full["grads"]) < 0.028
        assert torch.equal(ours["y"], full["y"])
        report = ours["report"]
        assert report.modules == 3
        assert report.calls == 2  # of modules that had a gradient
        # A byte for each block of 128, and of each row's end.
        assert 0.5 < report.bytes_sent / report.bf16_bytes < 0.52
        assert "no collective of 3 modules was made" in ours["nothing"]


@pytest.mark.parametrize("mesh", ["4", "2 x 2"])
def test_sharded_weights_are_gathered_in_8_bits_and_kept_exact(found, mesh: str) -> None:
    for one in found:
        full, ours = one["sharded"][mesh]["full"], one["sharded"][mesh]["weights"]
        assert torch.equal(ours["grads"], found[0]["sharded"][mesh]["weights"]["grads"])
        assert ours["kept"]
        # Two layers, each with a rounding of its weights.
        assert 0.01 < relative_error(ours["y"], full["y"]) < 2 * 0.0265
        assert ours["report"].calls >= 2
        assert 0.5 < ours["report"].bytes_sent / ours["report"].bf16_bytes < 0.52


@pytest.mark.parametrize("mesh", ["4", "2 x 2"])
def test_a_sharded_gradient_that_is_not_finite_stays_so(found, mesh: str) -> None:
    assert found[0]["sharded"][mesh]["not finite"]["grads"].isnan().all()


def test_sharding_is_refused_on_every_rank_if_one_differs(found) -> None:
    for rank, one in enumerate(found):
        assert "format differs between ranks" in one["sharded"]["4"]["refused"]
        assert "format is BF16; expected E4M3FN or E5M2" in one["sharded"]["4"]["format"]
        # Of two pairs, the one that agrees hears from the other.
        assert "format differs" in one["sharded"]["2 x 2"]["refused"], rank
    for serve in (fp8_reduce_scatter, fp8_all_gather):
        with pytest.raises(TypeError, match="nothing in this Linear was sharded by fully_shard"):
            serve(nn.Linear(2, 2))
