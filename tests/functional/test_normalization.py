from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unitscale.functional as U


def test_rms_norm_is_the_root_of_the_mean_square() -> None:
    """The existing library's docstring leaves the mean out."""
    x, w = torch.randn(4, 8), torch.rand(8)
    want = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w
    torch.testing.assert_close(U.rms_norm(x, [8], w, eps=1e-5), want)


def test_norms_leave_input_and_parameters_as_they_were() -> None:
    x, w, b = torch.randn(4, 8, 6), torch.rand(8), torch.rand(8)
    copies = x.clone(), w.clone(), b.clone()
    U.group_norm(x, 2, w, b)
    U.batch_norm(x, None, None, w, b, training=True)
    U.instance_norm(x, weight=w, bias=b)
    U.layer_norm(x.mT, 8, w, b)
    U.rms_norm(x.mT, 8, w)
    for tensor, copy in zip((x, w, b), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("sizes", [6, [6], (8, 6)])
def test_normalized_shape_may_be_one_size_or_several(sizes: int | list[int] | tuple[int]) -> None:
    x = torch.randn(4, 8, 6)
    axes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    assert torch.equal(U.layer_norm(x, sizes), F.layer_norm(x, axes))
    assert torch.equal(U.rms_norm(x, sizes), F.rms_norm(x, axes))


def test_batch_norm_updates_and_uses_running_statistics_as_torch_does() -> None:
    x, w = torch.randn(8, 5, 4) * 3 + 1, torch.ones(5)
    ours, theirs = ([torch.zeros(5), torch.ones(5)] for _ in range(2))
    for training in (True, False):
        got = U.batch_norm(x, *ours, weight=w, training=training, momentum=0.3)
        want = F.batch_norm(x, *theirs, weight=w, training=training, momentum=0.3)
        assert torch.equal(got, want)
    assert all(map(torch.equal, ours, theirs))
    statistics = torch.zeros(5), torch.ones(5)
    assert torch.equal(
        U.instance_norm(x, *statistics, use_input_stats=False),
        F.instance_norm(x, *statistics, use_input_stats=False),
    )


def test_gradient_of_the_input_is_divided_by_its_scale() -> None:
    """The stated limit: unit only for an input of unit scale."""
    x = (torch.randn(512, 256) * 4).requires_grad_()
    y = U.layer_norm(x, 256)
    y.backward(torch.randn_like(y))
    assert x.grad.square().mean().sqrt().item() == pytest.approx(1 / 4, rel=0.02)


X = torch.zeros(2, 4, 6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: U.layer_norm(X, 4), ValueError, r"shape \[2, 4, 6\], normalized_shape is \[4\]"),
        (lambda: U.layer_norm(X, ()), ValueError, r"normalized_shape is \[\]"),
        (lambda: U.rms_norm(X, 6, torch.ones(4)), ValueError, r"rms_norm: weight has shape \[4\]"),
        (lambda: U.group_norm(X, 2, torch.ones(6)), ValueError, r"weight has shape \[6\].*\[4\]"),
        (
            lambda: U.batch_norm(X[0, 0], None, None, training=True),
            ValueError,
            r"batch_norm: input has shape \[6\], expected \[N, C",
        ),
        (lambda: U.layer_norm(X.int(), 6), TypeError, r"input has dtype torch\.int32"),
    ],
)
def test_a_wrong_call_says_value_and_expectation(
    call: Callable[[], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
