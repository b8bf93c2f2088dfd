"""Activations: every module passes its attributes on, and gives unit scale."""

import copy
import pickle

import pytest
import torch
from torch import nn

from unitscale import nn as unn

MODULES = [
    unn.ReLU(), unn.ReLU6(), unn.LeakyReLU(0.2), unn.GELU("tanh"), unn.SiLU(), unn.Mish(),
    unn.ELU(0.7), unn.CELU(0.7), unn.SELU(), unn.Tanh(), unn.Sigmoid(), unn.LogSigmoid(),
    unn.Softplus(2.0), unn.Softsign(), unn.Hardtanh(-0.5, 1.5), unn.Hardsigmoid(),
    unn.Hardswish(), unn.Hardshrink(0.3), unn.Softshrink(0.3), unn.Tanhshrink(),
    unn.Threshold(0.1, 0.0), unn.PReLU(init=0.1),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_activation_is_torchs_times_a_constant_and_has_unit_std(module: nn.Module) -> None:
    x = torch.randn(2**16)
    y = module(x)
    plain = getattr(nn, type(module).__name__).forward(module, x)
    factor = y.norm() / plain.norm()
    torch.testing.assert_close(y, plain * factor, rtol=1e-5, atol=1e-6)
    # 4 standard errors of a variance with kurtosis at most 10, n = 2^16: 2 * 3 / 256
    assert abs(y.std() - 1) < 0.025


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_activation_survives_copies(module: nn.Module) -> None:
    x = torch.randn(8)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


def test_softmax_and_glu_have_unit_scale() -> None:
    for module in (unn.Softmax(-1), unn.Softmin(-1)):  # by the RMS: a product with it is unit then
        assert abs(module(torch.randn(256, 256)).square().mean().sqrt() - 1) < 0.05
    assert abs(unn.GLU()(torch.randn(256, 256)).std() - 1) < 0.05
