"""The eager layer: what counts as a kernel, and how many unit scaling adds."""

import eager_layer
import torch

import unitscale.functional as U


def test_what_makes_values_is_a_kernel_and_what_shows_them_is_none() -> None:
    x = torch.ones(4, 8)
    with eager_layer.Counter() as counter:
        y = x.t().reshape(4, 8)  # not contiguous: a copy
        y.view(-1).expand(2, 32)
        x.new_empty(4)
        y.mul_(2)
        y + 1
    assert counter.count == eager_layer.Count(kernels=3, bytes=3 * 4 * 4 * 8)


def test_the_layers_are_of_one_shape() -> None:
    for ops in (U, eager_layer.Plain):
        output, *grads = eager_layer.step(ops, 64)()
        assert output.shape == (2, 32, 64)
        assert all(grad.abs().max() > 0 for grad in grads)


def test_eager_unit_scaling_costs_no_more_kernels_than_the_page_says() -> None:
    plain, ours = (eager_layer.count(ops, 64) for ops in (eager_layer.Plain, U))
    assert plain.kernels == 32
    # GELU and attention 2 each, norms 4, residual sums 2 forward and 2 backward.
    assert ours.kernels == 44
