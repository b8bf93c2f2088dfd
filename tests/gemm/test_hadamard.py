"""The random Hadamard transform: a rotation that spreads outliers."""

import pytest
import torch

from unitscale.gemm.hadamard import rotation, turned

each_size = pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 128])


@each_size
def test_it_is_orthogonal(size):
    """Its rows are sums of `size` products of entries +-size^-1/2: float64 to 2^-52 each."""
    q = rotation(size, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(q @ q.T, torch.eye(size).double(), rtol=0, atol=size * 2.0**-52)


def test_for_16_its_entries_are_quarters_so_that_it_is_its_own_inverse_to_the_bit():
    q = rotation(16, torch.zeros(()))
    assert set(q.abs().flatten().tolist()) == {0.25}
    x = torch.randint(-128, 128, (40, 16)).float()  # eight bits and four of a sum: exact
    assert torch.equal((x @ q) @ q.T, x)


def test_signs_are_random_and_the_same_every_time():
    signs = rotation(16, torch.zeros(()))[:, 0].sign()
    assert 4 <= (signs > 0).sum() <= 12
    torch.manual_seed(1)
    assert torch.equal(rotation(16, torch.zeros(()))[:, 0].sign(), signs)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_inner_products_stay_at_any_length(length):
    x, y = (torch.randint(-64, 65, (3, length)).float() for _ in range(2))
    a, b = turned(x, 16), turned(y, 16)
    assert a.shape == (3, -(-length // 16) * 16)
    assert torch.equal((a * b).sum(-1), (x * y).sum(-1))  # sixteenths, exact in float32


def test_turning_one_side_alone_changes_the_product():
    x, y = torch.randn(3, 32), torch.randn(3, 32)
    assert not torch.allclose((turned(x, 16) * y).sum(-1), (x * y).sum(-1), atol=0.1)


def test_an_outlier_is_spread_over_its_run_and_no_further():
    x = torch.zeros(48)
    x[20] = 16.0
    runs = turned(x, 16).view(3, 16)
    assert runs[1].abs().tolist() == [4.0] * 16
    assert runs[0].count_nonzero() == runs[2].count_nonzero() == 0


def test_energy_stays_and_the_peak_falls():
    """Of values with one outlier in each run the amax falls towards a quarter of it."""
    x = torch.randn(64, 16)
    x[:, 3] = 100.0
    y = turned(x, 16)
    torch.testing.assert_close(y.norm(), x.norm(), rtol=1e-6, atol=0)
    # 25 of the outlier, and noise of size 1 of which 1,024 values stay below 5.
    assert y.abs().max() < 25 + 5
    assert (y.abs().amax(1) >= 25 - 5).all()
