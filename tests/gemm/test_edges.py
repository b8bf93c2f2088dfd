"""What the tests of products assert can fail."""

import pytest
import torch

from gemm.edges import assert_on_grid, assert_same_bits, saved_bytes


def test_values_off_the_grid_are_seen():
    assert_on_grid(torch.tensor([0.0, 448.0, -0.875]), "E4M3FN")
    for wrong in ([0.9], [449.0], [0.0]):
        with pytest.raises(AssertionError):
            assert_on_grid(torch.tensor(wrong), "E4M3FN")


def test_a_last_bit_is_seen():
    x = torch.ones(3)
    assert_same_bits([x, x * float("nan")], [x, x * float("nan")])
    for other in (x.nextafter(x + 1), x.bfloat16(), x[:2]):
        with pytest.raises(AssertionError):
            assert_same_bits([x], [other])


def test_saved_bytes_counts_a_shared_memory_once():
    x = torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 40
    assert saved_bytes(lambda: x.sin() * x.cos()) == 120  # x, sin x and cos x
    assert saved_bytes(lambda: x + x) == 0
