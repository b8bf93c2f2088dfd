"""Gradients of 2 and 4 ranks: one start of processes for all that is to be seen there."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed.grid import assert_few_bits, gradients, relative_error
from processes import work_together
from unitscale.distributed import (
    AutomaticScale,
    CurrentScale,
    RootScale,
    UnitScale,
    WireReport,
    fp8_hook,
)
from unitscale.formats import BF16, E4M3FN, E5M2

RANKS = 4
SHAPES = [(64, 127), (127,), (31, 64), (3,)]
"""No number of ranks divides the elements of a bucket."""


class Given(nn.Module):
    """Its gradients are what one hands to its forward."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(s, dtype=dtype)) for s in SHAPES)

    def forward(self, given: list[Tensor]) -> Tensor:
        return sum((p * g).sum() for p, g in zip(self.parts, given, strict=True))


def drawn(rank: int, step: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gaussian gradients, other ones on each rank; the last rank's are 4 times as large."""
    made = torch.Generator().manual_seed(1000 * step + rank)
    return [
        (torch.randn(s, generator=made) * 10.0**-n * (4 if rank == RANKS - 1 else 1)).to(dtype)
        for n, s in enumerate(SHAPES)
    ]


def mean_of(ranks: int, step: int) -> Tensor:
    """What a sum in float64 gives."""
    total = sum(
        torch.cat([g.flatten().double() for g in drawn(rank, step)]) for rank in range(ranks)
    )
    return (total / ranks).float()


def passes(ddp: nn.Module, given: list[list[Tensor]]) -> list[Tensor]:
    """The gradients of a backward pass for each."""
    found = []
    for gradient in given:
        ddp.zero_grad()
        ddp(gradient).backward()
        found.append(gradients(ddp).clone())
    return found


def averages(rank: int, of: Any, **options: Any) -> tuple[list[Tensor], WireReport, str]:
    """Three passes over Gaussian gradients."""
    ddp = DistributedDataParallel(Given(), process_group=of, bucket_cap_mb=0.02)
    wire = fp8_hook(ddp, **options)
    found = passes(ddp, [drawn(rank, step) for step in range(3)])
    return found, wire.report(), str(wire.state_dict()["log2"])


ALL = {
    "unit": {},
    "unit again": {},
    "current": {"scale": CurrentScale()},
    "automatic": {"scale": AutomaticScale()},
    "root": {"scale": RootScale()},
    "E5M2": {"format": E5M2},
    "BF16 mean": {"mean_format": BF16},
    "stochastic": {"rounding": "stochastic"},
    "stochastic again": {"rounding": "stochastic"},
    "other seed": {"rounding": "stochastic", "seed": 1},
    "too high": {"scale": UnitScale(target_log2=7, remeasure="never")},
}


def work(rank: int, folder: Path) -> None:
    import warnings

    warnings.simplefilter("ignore")  # of saturation, which is looked at in the report
    pair, own, second = (dist.new_group([0, 1]) for _ in range(3))
    found: dict[str, Any] = {name: averages(rank, None, **options) for name, options in ALL.items()}
    if rank < 2:
        found["2 ranks"] = averages(rank, pair, group=own)
    found["not finite"] = not_finite(rank)
    found["no_sync"] = accumulated(rank)
    found["16 bits"] = {dtype: half(rank, dtype) for dtype in (torch.bfloat16, torch.float16)}
    found["refused"] = refused(rank)
    found["remeasured"] = remeasured(rank)
    found["states"] = states(rank)
    found["diverged"] = diverged(rank)
    if rank < 2:
        found["trained"] = [trained(rank, pair, own) for own in (None, second)]
        found["subset"] = subset(pair)
    torch.save(found, folder / f"{rank}.pt")


def not_finite(rank: int) -> list[list[Tensor]]:
    """A NaN, then an infinity, on rank 1 alone; then none."""
    found = []
    for scale in (UnitScale(remeasure="once"), CurrentScale(), UnitScale(remeasure="never")):
        ddp = DistributedDataParallel(Given())
        fp8_hook(ddp, scale=scale)
        given = []
        for value in (0.5, torch.nan, torch.inf, 0.5):
            gradient = drawn(rank, 0)
            if rank == 1:
                gradient[0][3, 5] = value
            given.append(gradient)
        found.append(passes(ddp, given))
    return found


def accumulated(rank: int) -> tuple[Tensor, WireReport]:
    """Two micro-batches, of which the second exchanges the sum."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp)
    with ddp.no_sync():
        ddp(drawn(rank, 0)).backward()
    ddp(drawn(rank, 1)).backward()
    return gradients(ddp), wire.report()


def half(rank: int, dtype: torch.dtype) -> Tensor:
    ddp = DistributedDataParallel(Given(dtype))
    fp8_hook(ddp)
    return passes(ddp, [drawn(rank, 0, dtype)])[0]


def refused(rank: int) -> list[str]:
    """The messages where ranks differ or one is wrong; the model is as it was each time."""
    ddp = DistributedDataParallel(Given())
    messages = []
    for options in (
        {"format": E5M2 if rank == 2 else E4M3FN},
        {"scale": UnitScale(target_log2=rank)},
        {"rounding": "up" if rank == 3 else "nearest"},
        {"seed": rank // 3},
    ):
        with pytest.raises(ValueError, match="fp8_hook: ") as caught:
            fp8_hook(ddp, **options)
        messages.append(str(caught.value))
    exact = passes(ddp, [drawn(rank, 0)])[0]
    torch.testing.assert_close(exact, mean_of(RANKS, 0))  # DDP's own mean
    return messages


def subset(pair: Any) -> list[str]:
    """What is said of a model on some ranks without a group for its hook, or with a wrong one."""
    ddp = DistributedDataParallel(Given(), process_group=pair)
    messages = []
    for group in (None, pair, dist.group.WORLD):
        with pytest.raises(ValueError, match="fp8_hook: ") as caught:
            fp8_hook(ddp, group=group)
        messages.append(str(caught.value))
    return messages


def remeasured(rank: int) -> list[int]:
    """Exchanges of amaxes after each pass; rank 2 alone asks before the third."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="once"))
    found = []
    for step in range(5):
        if step == 2 and rank == 2:
            wire.remeasure()
        passes(ddp, [drawn(rank, step)])
        found.append(wire.report().scale_exchanges)
    return found


def states(rank: int) -> str:
    """A state that differs on one rank is refused on all, and none has changed."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp)
    passes(ddp, [drawn(rank, 0)])
    state = wire.state_dict()
    wrong = copy.deepcopy(state)
    wrong["log2"]["parts.0"] += rank == 3
    with pytest.raises(ValueError, match="load_state_dict") as caught:
        wire.load_state_dict(wrong)
    assert wire.state_dict() == state
    wire.load_state_dict(state)
    return str(caught.value)


def diverged(rank: int) -> str:
    """Somebody wrote to the scales of one rank."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="once"))
    passes(ddp, [drawn(rank, 0)])
    wire.state.log2["parts.0"] += rank == 1
    with pytest.raises(RuntimeError, match="cast their gradients at different") as caught:
        passes(ddp, [drawn(rank, 1)])
    return str(caught.value)


def trained(rank: int, group: Any, own: Any) -> tuple[list[float], Any]:
    """50 steps of a small classifier, each rank on its share of the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    ddp = DistributedDataParallel(model, process_group=group)
    wire = fp8_hook(ddp, group=own) if own else None
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    teacher = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(50):
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(2 + step))
        share = x[32 * rank : 32 * (rank + 1)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(share), (share @ teacher).argmax(1)).backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(model(x), (x @ teacher).argmax(1)).item())
    return losses, wire and wire.report()


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
    """Rounding gradients is noise of 4 % on steps whose batch noise is far larger."""
    for one in found[:2]:
        (exact, _), (losses, report) = one["trained"]
        assert exact[-1] < 0.5 * exact[0]
        assert losses[-1] == pytest.approx(exact[-1], rel=0.02)
        assert losses != exact
        assert report.saturated == 0
        assert report.passes == 50
