"""What every module of unitscale.nn shares: start, kinds, copies, and constraint."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from unitscale import nn as unn

KINDS = {"hidden", "input", "output", "bias", "norm"}

MODULES = {
    "Linear": (lambda: unn.Linear(8, 12), (4, 8)),
    "LinearReadout": (lambda: unn.LinearReadout(8, 12, bias=True), (4, 8)),
    "Conv1d": (lambda: unn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "CausalConv1d": (lambda: unn.CausalConv1d(4, 6, 3), (2, 4, 9)),
    "Conv2d": (lambda: unn.Conv2d(4, 6, 3, stride=2), (2, 4, 9, 9)),
    "Conv3d": (lambda: unn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3)),
    "LayerNorm": (lambda: unn.LayerNorm(8), (4, 8)),
    "RMSNorm": (lambda: unn.RMSNorm(8), (4, 8)),
    "GroupNorm": (lambda: unn.GroupNorm(2, 4), (3, 4, 5)),
    "BatchNorm1d": (lambda: unn.BatchNorm1d(4), (8, 4)),
    "BatchNorm2d": (lambda: unn.BatchNorm2d(4), (3, 4, 5, 5)),
    "RNN": (lambda: unn.RNN(5, 6), (7, 2, 5)),
    "LSTM": (lambda: unn.LSTM(5, 6, num_layers=2), (7, 2, 5)),
    "GRU": (lambda: unn.GRU(5, 6, bidirectional=True), (7, 2, 5)),
    "RecurrentHighway": (lambda: unn.RecurrentHighway(5, 6, trainable_state=True), (7, 2, 5)),
    "PadAndShift": (lambda: unn.PadAndShift(8), (4, 5, 8)),
    "MLP": (lambda: unn.MLP(8), (4, 8)),
    "gated MLP": (lambda: unn.MLP(8, 16, "silu", gated=True, bias=True, mult=2.0), (4, 8)),
    "TransformerLayer": (lambda: unn.TransformerLayer(8, 2), (2, 5, 8)),
    "TransformerDecoder": (lambda: unn.TransformerDecoder(2, 8, 2, dropout=0.1), (2, 5, 8)),
    "Residual": (lambda: unn.Residual(unn.Linear(8, 8), unn.Fixed(share=0.3)), (4, 8)),
}


def first(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", MODULES)
def test_copy_pickle_and_state_dict_keep_the_function(name: str) -> None:
    build, shape = MODULES[name]
    module, x = build().eval(), torch.randn(shape)
    expected = first(module(x))
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    loaded = build().eval()
    loaded.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), torch.load(stream, weights_only=False), loaded):
        torch.testing.assert_close(first(other(x)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_has_a_kind(name: str) -> None:
    for module in MODULES[name][0]().modules():
        for parameter, _ in module.named_parameters(recurse=False):
            assert module.parameter_kinds[parameter] in KINDS


@pytest.mark.parametrize("name", MODULES)
def test_parameters_start_at_unit_variance(name: str) -> None:
    torch.manual_seed(1)
    for module in MODULES[name][0]().modules():
        for own, parameter in module.named_parameters(recurse=False):
            kind = module.parameter_kinds[own]
            if kind == "norm":
                assert (parameter == 1).all()
            elif kind == "bias":
                assert (parameter == 0).all()
            else:  # 5 standard errors of a variance of n normals
                n = parameter.numel()
                assert abs(parameter.square().mean() - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_stays_bfloat16(name: str) -> None:
    build, shape = MODULES[name]
    module = build().bfloat16()
    x = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    y = first(module(x))
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("module", "plain", "shape"),
    [
        (unn.Conv1d(4, 6, 3, constraint=None), unn.Conv1d(4, 6, 3), (2, 4, 9)),
        (unn.Linear(8, 32, constraint=None), unn.Linear(8, 32), (4, 8)),
        (unn.GELU(constraint=None), unn.GELU(), (4, 8)),
    ],
)
def test_constraint_reaches_the_op(module: nn.Module, plain: nn.Module, shape: tuple) -> None:
    plain.load_state_dict(module.state_dict())
    grads = []
    for m in (module, plain):
        x = torch.ones(shape).requires_grad_()
        m(x).sum().backward()
        grads.append(x.grad)
    assert not torch.allclose(*grads)
    assert "constraint=None" in repr(module)
    assert "constraint" not in repr(plain)


def test_arguments_are_torchs() -> None:
    assert unn.Linear(3, 4, False).bias is None
    assert unn.Conv2d(4, 8, 3, 2, 1, 1, 2, False, "circular").groups == 2
    assert unn.Linear(3, 4, dtype=torch.float64, device="meta").weight.is_meta


def test_inplace_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU: inplace=True is not supported"):
        unn.ReLU(True)
