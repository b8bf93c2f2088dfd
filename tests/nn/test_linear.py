"""Linear, read-out, embedding."""

import torch

from unitscale import nn as unn


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_linear_has_unit_output_and_gradients() -> None:
    layer = unn.Linear(256, 256)
    x = torch.randn(16, 32, 256, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    for tensor in (y, x.grad, layer.weight.grad, layer.bias.grad):
        assert 0.9 < rms(tensor) < 1.1


def test_free_linear_has_unit_gradients_at_any_expansion() -> None:
    layer = unn.Linear(64, 1024, constraint=None)
    x = torch.randn(512, 64, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert 0.9 < rms(x.grad) < 1.1
    constrained = unn.Linear(64, 1024)
    x = torch.randn(512, 64, requires_grad=True)
    y = constrained(x)
    y.backward(torch.randn_like(y))
    assert 3.6 < rms(x.grad) < 4.4  # sqrt(1024 / 64)


def test_readout_makes_small_logits_with_unit_gradients() -> None:
    layer = unn.LinearReadout(256, 512)
    x = torch.randn(1024, 256, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert 0.9 < rms(y) * 16 < 1.1  # 1 / sqrt(256)
    assert 0.9 < rms(x.grad) < 1.1
    assert 0.9 < rms(layer.weight.grad) < 1.1


def test_embedding_has_unit_rows_and_gradients() -> None:
    table = unn.Embedding(64, 128)
    y = table(torch.randint(64, (16, 256)))
    y.backward(torch.randn_like(y))
    assert 0.95 < rms(y) < 1.05
    assert 0.9 < rms(table.weight.grad) < 1.1


def test_embedding_passes_torchs_options_on() -> None:
    table = unn.Embedding(8, 4, padding_idx=2, sparse=True)
    assert (table.weight[2] == 0).all()
    table(torch.tensor([2, 3])).sum().backward()
    gradient = table.weight.grad
    assert gradient.is_sparse
    assert (gradient.to_dense()[2] == 0).all()
    assert (gradient.to_dense()[3] != 0).all()
