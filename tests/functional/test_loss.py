from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_asserts import assert_multiple
from torch import Tensor

import unitscale.functional as U

LN2 = 0.6931471805599453


def grad_rms(loss: Tensor, x: Tensor) -> float:
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return grad.square().mean().sqrt().item()


@pytest.mark.parametrize("shape", [(7,), (64, 7), (8, 7, 5), (4, 7, 3, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_cross_entropy_has_torchs_value_and_direction(
    shape: tuple[int, ...], reduction: str, soft: bool, weighted: bool, label_smoothing: float
) -> None:
    axis = min(len(shape) - 1, 1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(7, shape[:axis] + shape[axis + 1 :])
    target = torch.softmax(torch.randn(shape, dtype=torch.float64), axis) if soft else ids
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    if weighted:
        options["weight"] = torch.rand(7, dtype=torch.float64)
    ours, theirs = U.cross_entropy(x, target, **options), F.cross_entropy(x, target, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    (got,), (want,) = (torch.autograd.grad(loss.sum(), x) for loss in (ours, theirs))
    assert_multiple(got, want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_cross_entropy_gradient_is_unit_at_logits_of_zero(
    reduction: str, soft: bool, weighted: bool, label_smoothing: float
) -> None:
    x = torch.zeros(4096, 32, requires_grad=True)
    target = torch.softmax(torch.randn(4096, 32), 1) if soft else torch.randint(32, (4096,))
    weight = torch.rand(32) ** 2 * 5 if weighted else None
    loss = U.cross_entropy(x, target, weight, reduction=reduction, label_smoothing=label_smoothing)
    # Exact but for weights with smoothing, whose spread over the other classes is left out.
    assert grad_rms(loss, x) == pytest.approx(1, rel=0.03 if weighted and label_smoothing else 1e-4)


def test_ignored_tokens_are_left_out_of_the_mean() -> None:
    """The existing library divides by all tokens: 0.805 for torch's 1.609 at one half ignored."""
    x = torch.zeros(10, 5, requires_grad=True)
    target = torch.randint(5, (10,))
    target[::2] = -100
    assert U.cross_entropy(x, target).item() == pytest.approx(1.6094, abs=1e-4)
    other = torch.where(target == -100, 3, (target + (target >= 3)) % 5)
    assert torch.equal(
        U.cross_entropy(x, other, ignore_index=3), F.cross_entropy(x, other, ignore_index=3)
    )


@pytest.mark.parametrize(("reduction", "valid"), [("mean", 4.0), ("sum", 1.0), ("none", 1.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_valid_token_gets_what_the_reduction_gives_it(
    reduction: str, valid: float, weighted: bool
) -> None:
    """A quarter of the tokens is valid: a mean over them is four times as sensitive to each."""
    x = torch.zeros(1024, 16, requires_grad=True)
    target = torch.randint(16, (1024,))
    target[256:] = -100
    weight = torch.rand(16) + 0.5 if weighted else None
    loss = U.cross_entropy(x, target, weight, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert grad[256:].abs().max() == 0
    assert grad[:256].square().mean().sqrt().item() == pytest.approx(valid, rel=1e-4)


def test_no_valid_token_gives_what_torch_gives() -> None:
    x, target = torch.zeros(4, 5), torch.full((4,), -100)
    assert U.cross_entropy(x, target).isnan()
    assert U.cross_entropy(x, target, reduction="sum") == 0
    assert U.cross_entropy(x, target, torch.ones(5), reduction="sum") == 0


def test_a_loss_of_inf_stays_inf_unless_a_factor_was_measured() -> None:
    x = torch.tensor([[0.0, float("-inf")]])
    target = torch.tensor([1])
    assert U.cross_entropy(x, target).isinf()
    assert U.cross_entropy(x, target, torch.ones(2)).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_and_returned_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4096, 512, dtype=dtype, requires_grad=True)
    target = torch.randint(512, (4096,))
    loss = U.cross_entropy(x, target, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(x.float(), target, reduction="sum"))
    assert loss > 0.4 * torch.finfo(torch.float16).max  # in float16 it would be next to its end
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == dtype
    assert grad.float().square().mean().sqrt().item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_bce_gradient_is_unit_whatever_the_share_of_positives(reduction: str, share: float) -> None:
    x = torch.zeros(512, 8, requires_grad=True)
    target = (torch.rand(512, 8) < share).float()
    for options in ({}, {"pos_weight": torch.full((8,), 7.0)}, {"weight": torch.rand(512, 8)}):
        loss = U.binary_cross_entropy_with_logits(x, target, reduction=reduction, **options)
        plain = F.binary_cross_entropy_with_logits(x, target, reduction=reduction, **options)
        torch.testing.assert_close(loss, plain, rtol=0, atol=0)
        assert grad_rms(loss, x) == pytest.approx(1, rel=1e-4)


def test_bce_value_at_the_start_is_log_two() -> None:
    loss = U.binary_cross_entropy_with_logits(torch.zeros(8), torch.ones(8))
    assert loss.item() == pytest.approx(LN2)


ELEMENTWISE = [
    ("mse_loss", {}),
    ("l1_loss", {}),
    ("huber_loss", {"delta": 0.5}),
    ("huber_loss", {"delta": 2.0}),
    ("smooth_l1_loss", {"beta": 0.5}),
    ("smooth_l1_loss", {"beta": 0.0}),
]


@pytest.mark.parametrize(("loss", "reduction"), list(product(ELEMENTWISE, ["mean", "sum", "none"])))
def test_regression_losses_have_torchs_value_and_unit_gradients(
    loss: tuple[str, dict[str, float]], reduction: str
) -> None:
    name, params = loss
    x, target = (torch.randn(256, 64, requires_grad=True) for _ in range(2))
    ours = getattr(U, name)(x, target, reduction=reduction, **params)
    plain = getattr(F, name)(x, target, reduction=reduction, **params)
    assert torch.equal(ours, plain)
    for leaf in (x, target):  # 2^14 errors, kurtosis of the gradient at most 3: five errors 3 %
        (grad,) = torch.autograd.grad(ours.sum(), leaf, retain_graph=True)
        assert grad.square().mean().sqrt().item() == pytest.approx(1, rel=0.03)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")  # torch's own
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
def test_kl_div_has_torchs_value_and_a_unit_gradient(reduction: str, log_target: bool) -> None:
    x = torch.log_softmax(torch.randn(64, 16), 1).requires_grad_()
    target = torch.log_softmax(torch.randn(64, 16), 1)
    target = target if log_target else target.exp()
    ours = U.kl_div(x, target, reduction=reduction, log_target=log_target)
    plain = F.kl_div(x, target, reduction=reduction, log_target=log_target)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    assert grad_rms(ours, x) == pytest.approx(1, rel=1e-5)


LOGITS, IDS = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("op", "args", "options", "error", "message"),
    [
        ("cross_entropy", (LOGITS.long(), IDS), {}, TypeError, r"input has dtype torch\.int64"),
        ("cross_entropy", (LOGITS, IDS.int()), {}, TypeError, r"dtype torch\.int32.*target\.long"),
        (
            "cross_entropy",
            (LOGITS, IDS[:3]),
            {},
            ValueError,
            r"target has shape \[3\], expected \[4",
        ),
        (
            "cross_entropy",
            (torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)),
            {},
            ValueError,
            r"target has shape \[2, 3\], expected \[2, 5\].*movedim\(-1, 1\)",
        ),
        ("cross_entropy", (LOGITS, IDS, torch.ones(4)), {}, ValueError, r"weight has shape \[4\]"),
        ("cross_entropy", (LOGITS, IDS), {"reduction": "avg"}, ValueError, r"reduction is 'avg'"),
        ("cross_entropy", (torch.tensor(1.0), IDS), {}, ValueError, r"input has shape \[\]"),
        ("nll_loss", (LOGITS, IDS[:2]), {}, ValueError, r"nll_loss: target has shape \[2\]"),
        (
            "mse_loss",
            (LOGITS, LOGITS[0]),
            {},
            ValueError,
            r"input has shape \[4, 5\] and target \[5",
        ),
        ("mse_loss", (LOGITS, IDS), {}, TypeError, r"mse_loss: target has dtype torch\.int64"),
        ("huber_loss", (LOGITS, LOGITS), {"delta": -1.0}, Exception, r"delta"),
        ("kl_div", (LOGITS, LOGITS), {"reduction": "all"}, ValueError, r"'all'.*'batchmean'"),
    ],
)
def test_a_wrong_call_says_value_expectation_and_fix(
    op: str, args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(U, op)(*args, **options)
