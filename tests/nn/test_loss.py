"""Losses: torch's value with every option passed on."""

import pytest
import torch
from torch import nn

from unitscale import nn as unn

LOGITS, TARGET = torch.randn(12, 5), torch.randint(5, (12,))
X, Y = torch.randn(12, 5), torch.rand(12, 5)

CASES = [
    (unn.CrossEntropyLoss(), LOGITS, TARGET),
    (unn.CrossEntropyLoss(torch.rand(5), ignore_index=2, label_smoothing=0.1), LOGITS, TARGET),
    (unn.CrossEntropyLoss(reduction="sum"), LOGITS, TARGET),
    (unn.CrossEntropyLoss(reduction="none"), LOGITS, TARGET),
    (unn.BCEWithLogitsLoss(torch.rand(5), pos_weight=torch.rand(5)), X, Y),
    (unn.KLDivLoss(reduction="batchmean"), X.log_softmax(-1), Y.softmax(-1)),
    (unn.KLDivLoss(reduction="sum", log_target=True), X.log_softmax(-1), Y.log_softmax(-1)),
    (unn.MSELoss(reduction="sum"), X, Y),
    (unn.L1Loss(), X, Y),
    (unn.HuberLoss(delta=0.5), X, Y),
    (unn.SmoothL1Loss(beta=0.5), X, Y),
]


@pytest.mark.parametrize(
    ("loss", "input", "target"), CASES, ids=[type(c[0]).__name__ for c in CASES]
)
def test_loss_has_torchs_value(loss: nn.Module, input: torch.Tensor, target: torch.Tensor) -> None:
    torchs = getattr(nn, type(loss).__name__).forward(loss, input, target)
    torch.testing.assert_close(loss(input, target), torchs)


def test_ignored_targets_do_not_dilute_the_mean() -> None:
    target = torch.tensor([1, -100])
    loss = unn.CrossEntropyLoss()(torch.zeros(2, 5), target)
    torch.testing.assert_close(loss, torch.tensor(5.0).log())


def test_cross_entropy_gradient_is_unit_per_token() -> None:
    logits = torch.zeros(64, 256, requires_grad=True)
    unn.CrossEntropyLoss()(logits, torch.randint(256, (64,))).backward()
    assert 0.95 < logits.grad.square().mean().sqrt() < 1.05
