"""Bytes of a bucket: exact, whatever the pieces; what is lost is counted."""

import pytest
import torch

from unitscale.distributed import payload as module
from unitscale.distributed.payload import Layout, decode, encode
from unitscale.formats import BF16, E4M3FN, E4M3FNUZ, E5M2, round_to

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def test_layout_fills_shards_up() -> None:
    layout = Layout((3, 2), ranks=2)
    assert (layout.total, layout.shard, layout.padded) == (5, 3, 6)
    assert Layout((3,), ranks=4).padded == 4


@pytest.mark.parametrize("numels", [(5,), (1, 1, 7, 2), (0, 4, 0, 0, 3, 0), (16, 16)])
@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_pieces_cover_each_element_once(numels: tuple[int, ...], size: int) -> None:
    owner = [number for number, numel in enumerate(numels) for _ in range(numel)]
    found = []
    for start, stop, owners, counts in Layout(numels, 1).pieces(size):
        assert start == len(found)
        assert sum(counts) == stop - start <= size
        found += [who for who, count in zip(owners, counts, strict=True) for _ in range(count)]
    assert found == owner


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, E4M3FNUZ], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_payload_is_the_rounded_gradient_at_each_scale(fmt, dtype, monkeypatch) -> None:
    numels, scales = (7, 1, 0, 40, 5), torch.tensor([0.25, 8.0, 1.0, 2.0**-5, 3.0])
    layout = Layout(numels, ranks=4)
    x = torch.randn(layout.total).to(dtype)
    per_element = scales.repeat_interleave(torch.tensor(numels))
    wanted = round_to(x.float() / per_element, fmt) * per_element
    for size in (module.PIECE, 6):  # which cuts through parameters
        monkeypatch.setattr(module, "PIECE", size)
        data, lost = encode(x, layout, 1 / scales, fmt)
        assert data.dtype == torch.uint8
        assert len(data) == layout.padded
        assert not data[layout.total :].any()
        y = decode(data, layout, scales, fmt, torch.empty_like(x))
        # 1 / 3 is no power of two: a value next to a tie may go the other way.
        is_same = y == wanted.to(dtype)
        assert is_same[:-5].all()
        assert is_same.sum() >= len(x) - 1
        assert not lost.saturated.any()
        assert lost.nonfinite == 0
        assert lost.flushed == ((y == 0) & (x != 0)).sum()


def test_what_is_not_finite_is_nan_and_never_the_largest_value() -> None:
    x = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan, 500.0])
    layout, one = Layout((5,), 1), torch.ones(1)
    for fmt in (E4M3FN, E5M2):
        data, lost = encode(x, layout, one, fmt)
        y = decode(data, layout, one, fmt, torch.empty(5))
        assert y.isnan().tolist() == [False, True, True, True, False]
        assert y[0] == 1
        assert lost.nonfinite == 3
        assert lost.saturated.tolist() == [int(fmt == E4M3FN)]


def test_a_gradient_beyond_float32_at_its_scale_saturates() -> None:
    x = torch.tensor([2.0**100, -1.0], dtype=torch.float32)
    layout, inverse = Layout((2,), 1), torch.tensor([2.0**100])
    data, lost = encode(x, layout, inverse, E4M3FN)
    assert decode(data, layout, torch.ones(1), E4M3FN, torch.empty(2)).tolist() == [448, -448]
    assert lost.saturated.item() == 2
    assert lost.nonfinite == 0


@pytest.mark.parametrize(
    ("target", "low", "high"),
    [(-10, 0.5, 0.9), (-6, 0.034, 0.043), (-2, 0.025, 0.028), (2, 0.025, 0.028), (9, 0.3, 0.7)],
)
def test_an_rms_in_the_middle_of_the_format_has_its_error(target, low, high) -> None:
    """The default target, 2, has room on both sides; beyond it the counters say what is lost."""
    x, layout = torch.randn(20000), Layout((20000,), 1)
    data, lost = encode(x, layout, torch.tensor([2.0**target]), E4M3FN)
    y = decode(data, layout, torch.tensor([2.0**-target]), E4M3FN, torch.empty_like(x))
    assert low < (y - x).norm() / x.norm() < high
    assert (lost.saturated.item() > 1000) == (target == 9)
    assert (lost.flushed.item() > 5000) == (target == -10)


def test_saturated_and_largest_are_counted_by_parameter(monkeypatch) -> None:
    x = torch.tensor([449.0, 448, 440, -1000, 5, 447, -448, 1e-9, 0])
    layout = Layout((4, 2, 3), 2)
    for size in (module.PIECE, 2):
        monkeypatch.setattr(module, "PIECE", size)
        _, lost = encode(x, layout, torch.ones(3), E4M3FN)
        assert lost.saturated.tolist() == [2, 0, 0]
        assert lost.largest.tolist() == [4, 1, 1]  # 440 and 447 round to 448
        assert lost.flushed == 1


@pytest.mark.parametrize("size", [4, 1000])
def test_stochastic_payload_has_the_gradient_as_its_mean(size: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "PIECE", size)
    layout = Layout((1000,), 1)
    x = torch.full((1000,), 1.03)  # between 1 and 1.125
    seed = lambda piece: 17 + piece
    data, _ = encode(x, layout, torch.ones(1), E4M3FN, seed)
    y = decode(data, layout, torch.ones(1), E4M3FN, torch.empty(1000))
    assert set(y.tolist()) == {1.0, 1.125}
    p = 0.03 / 0.125
    error = 0.125 * (p * (1 - p) / 1000) ** 0.5
    assert abs(y.mean() - 1.03) < 4 * error
    again, _ = encode(x, layout, torch.ones(1), E4M3FN, seed)
    other, _ = encode(x, layout, torch.ones(1), E4M3FN, lambda piece: 99 + piece)
    assert torch.equal(data, again)
    assert not torch.equal(data, other)


def test_the_mean_of_finite_gradients_is_finite_in_16_bits() -> None:
    """65504 is nearest to 65536 in E4M3FN, which float16 does not hold."""
    x, layout, inverse = torch.tensor([65504.0]).half(), Layout((1,), 1), torch.tensor([2.0**-10])
    data, _ = encode(x, layout, inverse, E4M3FN)
    assert decode(data, layout, 1 / inverse, E4M3FN, torch.empty_like(x)).item() == 65504


def test_a_payload_of_16_bits_is_read_as_such() -> None:
    x, layout = torch.tensor([1.0, -3.14, torch.nan]), Layout((3,), 1)
    y = decode(x.bfloat16().view(torch.uint8), layout, torch.full((1,), 2.0), BF16, torch.empty(3))
    assert torch.equal(y[:2], x[:2].bfloat16().float() * 2)
    assert y[2].isnan()
