"""Bits from (seed, index): repeatable, even, and independent across indices, bits and seeds.

A count of n fair coin flips has the standard deviation `sqrt(n) / 2`. Where m counts are looked at
together, the largest of m normals passes 6 with a probability of m * 2e-9; seeds are fixed.
"""

import math

import pytest
import torch

from unitscale.formats import E4M3FN, E5M2, FORMATS, FP16, round_to
from unitscale.formats.hashing import LANES, keys_of, lane_numbers, random_int32

CPU = torch.device("cpu")
N = 2**20
LIMIT = 6.0


def words(seed, n=N, start=0):
    return random_int32(torch.Size([n]), keys_of(seed, CPU), start)


def bits_of(h):
    """One row per bit, +1 or -1."""
    return torch.stack([((h >> bit) & 1).float() * 2 - 1 for bit in range(32)])


def assert_fair(flips):
    """Sums over the last axis of flips of +-1 stay within LIMIT standard deviations."""
    z = flips.sum(-1).abs().max().item() / math.sqrt(flips.shape[-1])
    assert z < LIMIT, z


def test_assert_fair_fails_on_a_bias_of_one_in_fifty():
    flips = bits_of(words(0)).clone()
    flips[3, ::50] = 1
    with pytest.raises(AssertionError):
        assert_fair(flips)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62])
def test_every_bit_is_fair(seed):
    assert_fair(bits_of(words(seed)))


@pytest.mark.parametrize("seed", [0, 12345])
def test_bits_of_one_word_are_independent(seed):
    flips = bits_of(words(seed))
    z = (flips @ flips.t()).fill_diagonal_(0).abs().max().item() / math.sqrt(N)
    assert z < LIMIT


@pytest.mark.parametrize("lag", [1, 2, 3, 31, 32, 33, 1024, 4096, 65_536])
def test_indices_are_independent(lag):
    """Each of 32 bits with each of the 32 bits `lag` elements on."""
    flips = bits_of(words(7, N + lag))
    z = (flips[:, :N] @ flips[:, lag:].t()).abs().max().item() / math.sqrt(N)
    assert z < LIMIT


def test_squares_of_four_indices_are_independent():
    """An additive hash of row and column would make these products 1."""
    flips = bits_of(words(9)).view(32, -1, LANES)
    product = flips[:, ::2, ::2] * flips[:, 1::2, ::2] * flips[:, ::2, 1::2] * flips[:, 1::2, 1::2]
    assert_fair(product.flatten(1))


@pytest.mark.parametrize("other", [1, 2, 2**32, 2**63 - 1, -(2**63)])
def test_seeds_are_independent(other):
    z = (bits_of(words(0)) @ bits_of(words(other)).t()).abs().max().item() / math.sqrt(N)
    assert z < LIMIT


def test_buckets_are_filled_as_by_chance():
    """Chi-square of 2**10 buckets of the low bits and of the high ones: mean 1023, sd 45.2."""
    h = words(3)
    for part in (h & 1023, (h >> 22) & 1023, (h >> 10) & 1023):
        counts = torch.bincount(part, minlength=1024).double()
        chi_square = ((counts - N / 1024) ** 2 / (N / 1024)).sum().item()
        assert abs(chi_square - 1023) < LIMIT * math.sqrt(2 * 1023)


def test_words_of_one_seed_do_not_repeat():
    """Each step is a bijection of 32 bits."""
    assert words(5).unique().numel() == N


def test_row_layout_start_and_table_give_one_numbering():
    whole = words(4, 40 * LANES)
    keys = keys_of(4, CPU)
    for lanes in (None, lane_numbers(CPU)):
        rows = random_int32(torch.Size([40, LANES]), keys, lanes=lanes)
        assert torch.equal(rows.view(-1), whole)
    assert torch.equal(words(4, 100, start=37), whole[37:137])
    assert torch.equal(words(4, 4, start=2**32 - 2)[2:], whole[:2])  # modulo 2**32
    assert torch.equal(words(4, 4, start=2**31 - 2), words(4, 8, start=2**31 - 4)[2:6])


def test_keys_of_splitmix64():
    """Its first numbers for seed 1234567, as published with the code (prng.di.unimi.it)."""
    keys = keys_of(1234567, CPU).tolist()
    assert (keys[0] & 0xFFFFFFFF) | (keys[1] & 0xFFFFFFFF) << 32 == 6457827717110365317
    assert keys_of(torch.tensor(1234567, dtype=torch.int32), CPU).tolist() == keys


# What becomes of it: rounding.


@pytest.mark.parametrize(
    ("fmt", "lo", "hi"),
    [
        (E4M3FN, 1.0, 1.125),
        (E4M3FN, 0.0, 2.0**-9),
        (E4M3FN, 416.0, 448.0),
        (E5M2, 2.0**-16, 2.0**-15),
        (FP16, 1.0, 1.0 + 2.0**-10),
        (FORMATS["E2M1FN"], 0.5, 1.0),
    ],
)
def test_mean_over_indices_is_the_value(fmt, lo, hi):
    """5 standard errors of a share, and half of the last random bit for subnormals."""
    for p in (1 / 64, 0.3, 0.5, 0.97):
        x = torch.tensor(lo + p * (hi - lo), dtype=torch.float32)
        y = round_to(x.expand(N).contiguous(), fmt, "stochastic", seed=11).double()
        assert set(y.tolist()) == {lo, hi}
        p = (x.item() - lo) / (hi - lo)
        bound = 5 * math.sqrt(p * (1 - p) / N) + 2.0 ** -(24 - fmt.mantissa_bits)
        assert abs((y.mean().item() - lo) / (hi - lo) - p) < bound


def test_mean_over_seeds_is_the_value():
    """Of each element: its error over 400 seeds, in standard errors, is a standard normal."""
    x = torch.rand(2000) + 1
    total = sum(round_to(x, E4M3FN, "stochastic", seed=seed).double() for seed in range(400))
    down = round_to(x, E4M3FN, "toward_zero").double()
    p = (x.double() - down) / 0.125
    z = (total / 400 - x.double()) / (0.125 * (p * (1 - p) / 400).sqrt())
    z = z[(p > 0.05) & (p < 0.95)]
    assert z.abs().max() < LIMIT
    assert abs(z.square().mean().item() - 1) < LIMIT * math.sqrt(2 / z.numel())


def test_errors_of_neighbouring_elements_are_uncorrelated():
    x = torch.rand(N) + 1
    error = round_to(x, E4M3FN, "stochastic", seed=1).double() - x.double()
    for lag in (1, 2, 16, 32, 4096):
        correlation = (error[lag:] * error[:-lag]).mean() / error.square().mean()
        assert abs(correlation.item()) * math.sqrt(N) < LIMIT


def test_a_seed_decides_everything_and_strides_nothing():
    x = torch.randn(64, 50)
    first = round_to(x, E4M3FN, "stochastic", seed=1)
    assert torch.equal(first, round_to(x, E4M3FN, "stochastic", seed=torch.tensor(1)))
    assert torch.equal(first, round_to(x.t().contiguous().t(), E4M3FN, "stochastic", seed=1))
    assert not torch.equal(first, round_to(x, E4M3FN, "stochastic", seed=2))


def test_a_constant_hash_is_noticed(monkeypatch):
    from unitscale.formats import stochastic

    monkeypatch.setattr(stochastic, "hashed", lambda keys, start, h, scratch: h.zero_())
    with pytest.raises(AssertionError):
        test_mean_over_indices_is_the_value(E4M3FN, 1.0, 1.125)
