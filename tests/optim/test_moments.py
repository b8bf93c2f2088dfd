"""Moments in few bits: their errors, their edges, and that no second moment above zero is zero."""

import math

import pytest
import torch

from optim.state_cases import relative_error
from unitscale.formats import E4M3FN, FP16
from unitscale.optim.arithmetic import amax_of
from unitscale.optim.moments import Companded, Expanded, Float32, TensorScaled, expansion

FIRST = [TensorScaled(format=E4M3FN), Expanded(), Companded()]
SECOND = [
    TensorScaled(format=FP16, is_positive=True),
    TensorScaled(format=E4M3FN, is_positive=True),
    Expanded(is_positive=True),
    Companded(is_positive=True),
]
ALL = [Float32(), *FIRST, *SECOND]


def name_of(codec):
    return f"{type(codec).__name__}{getattr(codec, 'is_positive', '')}"


def through(codec, x):
    """Stored and read again."""
    stored = codec.encode(x, amax_of(x))
    for field, tensor in zip(codec.fields, stored, strict=True):
        assert tensor.dtype == field.dtype
    return codec.decode(stored)


def adam_moments(rows=64, width=512, steps=300):
    """Moments after some steps of gradients that differ in size by rows, columns and chance."""
    generator = torch.Generator().manual_seed(0)
    size = (
        torch.randn(rows, 1, generator=generator).exp()
        * (0.5 * torch.randn(1, width, generator=generator)).exp()
    )
    m, v = torch.zeros(rows, width), torch.zeros(rows, width)
    for _ in range(steps):
        grad = size * torch.randn(rows, width, generator=generator) * 1e-3
        m.lerp_(grad, 0.1)
        v.mul_(0.95).addcmul_(grad, grad, value=0.05)
    return m, v


M, V = adam_moments()


@pytest.mark.parametrize(
    ("codec", "x", "lowest", "highest"),
    [
        # E4M3 rounds by 2**-4 at most, uniformly: 2**-4 / sqrt(3) / mean binade of 1.36 = .0265
        (TensorScaled(format=E4M3FN), M, 0.025, 0.028),
        # FP16: 2**-11 / sqrt(3) where values lie low in their binade
        (TensorScaled(format=FP16, is_positive=True), V, 1.9e-4, 2.9e-4),
        (Expanded(), M, 0.010, 0.016),
        (Expanded(is_positive=True), V, 0.003, 0.013),
        # steps of 2 / 254 of what is left of the amax, companded
        (Companded(), M, 0.003, 0.006),
        (Companded(is_positive=True), V, 0.002, 0.005),
    ],
    ids=name_of,
)
def test_error_is_that_of_the_codec(codec, x, lowest, highest):
    assert lowest < relative_error(through(codec, x), x) < highest


def test_expansion_is_finer_than_plain_blocks_of_e4m3():
    """COAT's promise: 1.7 times for the first moment and 5 times for the second."""

    def in_blocks_of_128(x):
        blocks = x.reshape(-1, 1, 128)
        codec = TensorScaled(format=E4M3FN)
        return torch.stack([through(codec, block) for block in blocks]).reshape(x.shape)

    assert relative_error(in_blocks_of_128(M), M) > 1.7 * relative_error(through(Expanded(), M), M)
    steady = adam_moments(rows=8, steps=1)[1] * 0 + 1e-6  # v spans about a factor of ten
    steady *= 10 ** torch.rand(steady.shape, generator=torch.Generator().manual_seed(1))
    fine = relative_error(through(Expanded(is_positive=True), steady), steady)
    assert relative_error(in_blocks_of_128(steady), steady) > 4 * fine


@pytest.mark.parametrize(
    ("spread", "k"), [(10.0, 5.361), (100.0, 2.680), (1e3, 1.787), (1e6, 0.893)]
)
def test_expansion_has_coats_exponents(spread, k):
    found = expansion(torch.tensor(spread), torch.tensor(1.0))
    assert found.item() == pytest.approx(k, abs=5e-4)


def test_both_ends_of_an_expanded_block_come_back():
    """The smallest lands on the smallest subnormal, whose neighbour is as far as itself."""
    for spread in (1.5, 10.0, 1e3, 1e6, 1e12):
        x = torch.linspace(0, 1, 128).mul(math.log(spread)).exp()[None] * 1e-7
        found = through(Expanded(), x)
        assert found[0, 0].item() == pytest.approx(x[0, 0].item(), rel=0.01)
        assert found[0, -1].item() == pytest.approx(x[0, -1].item(), rel=0.01)


EDGES = {
    "zeros": torch.zeros(2, 200),
    "constant": torch.full((2, 200), 3.7),
    "one": torch.nn.functional.pad(torch.tensor([[0.3]]), (77, 122)).repeat(2, 1),
    "wide": torch.logspace(-30, 0, 200).repeat(2, 1),
    "last alone": torch.rand(2, 129, generator=torch.Generator().manual_seed(0)),
    "tiny": torch.full((2, 200), 1e-37),
    "subnormal": torch.full((2, 200), 1e-40),
    "huge": torch.full((2, 200), 3e38),
    "no columns": torch.zeros(2, 0),
    "no rows": torch.zeros(0, 300),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("codec", ALL, ids=name_of)
def test_edges_stay_finite_and_zero_stays_zero(codec, edge):
    x = EDGES[edge]
    found = through(codec, x)
    assert found.shape == x.shape
    assert found.isfinite().all()
    assert (found[x == 0] == 0).all()
    # The largest is off by half a step of E4M3, and subnormals in float32 by more.
    amax = found.abs().amax(-1) if x.numel() else torch.zeros(1)
    assert torch.allclose(amax, amax_of(x), rtol=2**-4, atol=1e-41)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("codec", ALL, ids=name_of)
def test_what_is_not_finite_is_not_hidden_and_spoils_its_block_only(codec, bad):
    if getattr(codec, "is_positive", False) and bad < 0:
        return
    x = torch.ones(2, 512)
    x[1, 200] = bad
    found = through(codec, x)
    assert not found[1, 200].isfinite()
    assert found[0].isfinite().all()
    spoiled = 512 - int(found[1].isfinite().sum())
    assert spoiled == (codec.block if isinstance(codec, Companded) else 1)


@pytest.mark.parametrize("codec", SECOND, ids=name_of)
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-24])
def test_no_second_moment_above_zero_is_stored_as_zero(codec, size):
    """Squares of log-normal gradients: with one scale, E4M3 gives zero for most of them."""
    generator = torch.Generator().manual_seed(0)
    v = (4 * torch.randn(64, 256, generator=generator)).exp() * size
    v[:, ::7] = 0.0
    found = through(codec, v)
    assert ((found == 0) == (v == 0)).all()


def test_without_the_rule_most_would_be_zero():
    generator = torch.Generator().manual_seed(0)
    v = (4 * torch.randn(64, 256, generator=generator)).exp()
    lost = {
        str(fmt): (through(TensorScaled(format=fmt), v) == 0).float().mean().item()
        for fmt in (E4M3FN, FP16)
    }
    assert lost[str(E4M3FN)] > 0.5
    assert lost[str(FP16)] < 0.2


def test_companded_holds_moments_of_tiny_gradients():
    """Where a scale in FP16 is zero: 1e-9 of a first moment."""
    for size in (1.0, 1e-5, 1e-9):
        assert relative_error(through(Companded(), M / M.std() * size), M / M.std() * size) < 0.006
    scale_in_fp16 = torch.tensor(1e-9).half()
    assert scale_in_fp16 == 0


def ratio(m, v):
    return float((m / (v.sqrt() + 1e-8)).abs().max())


@pytest.mark.parametrize(
    ("first", "second"),
    [(FIRST[0], SECOND[0]), (FIRST[1], SECOND[2]), (FIRST[2], SECOND[3])],
    ids=["fp8-lm", "coat", "master24"],
)
def test_the_largest_step_grows_by_no_more_than_a_tenth(first, second):
    assert ratio(through(first, M), through(second, V)) <= 1.1 * ratio(M, V)


def test_the_largest_step_explodes_where_second_moments_become_zero():
    """Even steps of v, not of its root, and nothing to keep them from zero."""
    v = torch.full((4, 128), 1e-6)
    v[:, ::64] = 1e-3
    m = v.sqrt()
    amax = v.view(-1, 64).amax(-1, keepdim=True)
    linear = ((v.view(-1, 64) / amax * 255).round() / 255 * amax).view(v.shape)
    assert (linear == 0).float().mean() > 0.9
    assert ratio(m, linear) > 1000 * ratio(m, v)
    assert ratio(through(FIRST[2], m), through(SECOND[3], v)) <= 1.1 * ratio(m, v)


def test_a_second_moment_beside_a_large_one_goes_on_shrinking():
    """v = 1 beside 100 in its block, 400 steps of 0.999: 0.67 in float32.

    A format of 8 bits per block cannot move by 0.1 %, unless its steps are stretched to less. BF16,
    and E4M3 as it is, stay at 1: COAT and FP16 get there.
    """
    for codec, is_stuck in ((SECOND[0], False), (SECOND[2], False), (SECOND[1], True)):
        x = torch.full((1, 128), 100.0)
        x[0, 5] = 1.0
        for _ in range(400):
            x[0, 5] *= 0.999
            x = through(codec, x)
        expected = 0.999**400
        assert (x[0, 5].item() > 0.9) == is_stuck
        if not is_stuck:
            assert x[0, 5].item() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("codec", ALL, ids=name_of)
def test_stored_again_changes_little_and_then_nothing_adds_up(codec):
    """Idle states do not drift: after 50 rounds they are where they were after two."""
    x = V if getattr(codec, "is_positive", True) else M
    once = through(codec, x)
    again = through(codec, once)
    last = again
    for _ in range(50):
        last = through(codec, last)
    scale = once.abs().clamp(min=1e-30)
    # The exponents of an expanded block are computed anew, and round by some 1e-6.
    assert ((last - again).abs() / scale).max() < 1e-4
    assert relative_error(again, once) < 1e-4
