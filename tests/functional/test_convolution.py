from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_asserts import assert_multiple

import unitscale.functional as U

F64 = torch.float64


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "stride": (2, 1)},
        {"dilation": (1, 2), "padding": (0, 3)},
        {"groups": 2},
    ],
)
def test_weight_gradient_counts_the_output_positions_of_every_form(options: dict[str, Any]) -> None:
    x = torch.randn(3, 8, 11, 12, dtype=F64, requires_grad=True)
    w = torch.randn(6, 8 // options.get("groups", 1), 3, 3, dtype=F64, requires_grad=True)
    b = torch.zeros(6, dtype=F64, requires_grad=True)
    ours, theirs = U.conv2d(x, w, b, **options), F.conv2d(x, w, b, **options)
    terms = w[0].numel()
    torch.testing.assert_close(ours, theirs / terms**0.5)
    grad_output = torch.randn_like(theirs)
    positions = 3 * theirs[0, 0].numel()
    for leaf in (w, b):
        (got,), (want,) = (torch.autograd.grad(y, leaf, grad_output, retain_graph=True)
                           for y in (ours, theirs))  # fmt: skip
        assert assert_multiple(got, want) == pytest.approx(positions**-0.5)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "output_padding": 1}, {"padding": 1}])
def test_transposed_gradients_count_positions_of_input_and_output(options: dict[str, int]) -> None:
    x = torch.randn(3, 4, 7, 9, dtype=F64, requires_grad=True)
    w = torch.randn(4, 6, 3, 3, dtype=F64, requires_grad=True)
    b = torch.zeros(6, dtype=F64, requires_grad=True)
    ours, theirs = U.conv_transpose2d(x, w, b, **options), F.conv_transpose2d(x, w, b, **options)
    grad_output = torch.randn_like(theirs)
    for leaf, positions in ((w, 3 * 7 * 9), (b, 3 * theirs[0, 0].numel())):
        (got,), (want,) = (torch.autograd.grad(y, leaf, grad_output, retain_graph=True)
                           for y in (ours, theirs))  # fmt: skip
        assert assert_multiple(got, want) == pytest.approx(positions**-0.5)


def test_an_input_without_batch_axis_is_one_image() -> None:
    x, w, b = torch.randn(4, 10), torch.randn(6, 4, 3), torch.randn(6)
    torch.testing.assert_close(U.conv1d(x, w, b), U.conv1d(x[None], w, b)[0])
    with pytest.raises(ValueError, match=r"input has shape \[10\]"):
        U.conv1d(x[0], w)


@pytest.mark.parametrize(
    ("op", "input_shape", "weight_shape", "groups", "message"),
    [
        ("conv1d", (2, 5, 9), (4, 6, 3), 1, r"input has shape \[2, 5, 9\], expected \[N, 6"),
        ("conv2d", (2, 4, 9, 9), (4, 4, 3, 3), 2, r"expected \[N, 8, ...\]"),
        ("conv2d", (2, 4, 9), (4, 4, 3), 1, r"weight has shape \[4, 4, 3\], expected 4 axes"),
        ("conv3d", (2, 4, 9, 9), (4, 4, 3, 3, 3), 1, r"conv3d: input has shape \[2, 4, 9, 9\]"),
        ("conv_transpose1d", (2, 5, 9), (4, 6, 3), 1, r"expected \[N, 4"),
    ],
)
def test_wrong_channels_or_axes_are_named(
    op: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(U, op)(torch.zeros(input_shape), torch.zeros(weight_shape), groups=groups)


def test_a_wrong_bias_or_dtype_is_named() -> None:
    x, w = torch.zeros(2, 4, 9), torch.zeros(6, 4, 3)
    with pytest.raises(ValueError, match=r"bias has shape \[4\], expected \[6\]"):
        U.conv1d(x, w, torch.zeros(4))
    with pytest.raises(TypeError, match=r"input has dtype torch\.int64"):
        U.conv1d(x.long(), w)
