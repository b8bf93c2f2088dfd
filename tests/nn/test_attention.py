"""Attention: torch's function up to its factors, grouped queries, causality, dropout."""

import pytest
import torch
from torch import nn

from unitscale import nn as unn


def test_attention_is_torchs_with_scaled_weights() -> None:
    """With each projection's factor in its weight, torch's output times a constant."""
    ours = unn.MultiheadAttention(16, 4)
    torchs = nn.MultiheadAttention(16, 4)
    with torch.no_grad():
        # Logits: ours q.k/size, torch's q.k/sqrt(size), size 4; projections 1/sqrt(16).
        q, k, v = (getattr(ours, f"{name}_proj").weight / 4 for name in "qkv")
        torchs.in_proj_weight.copy_(torch.cat((q / 2, k, v)))
        torchs.out_proj.weight.copy_(ours.out_proj.weight / 4)
    x, y = torch.randn(6, 3, 16), torch.randn(9, 3, 16)
    got, weights = ours(x, y, y)
    want, _ = torchs(x, y, y)
    assert weights is None
    factor = got.norm() / want.norm()
    torch.testing.assert_close(got, want * factor)


def test_causal_attention_does_not_look_ahead() -> None:
    layer = unn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 8, 16)
    before, _ = layer(x, x, x, is_causal=True)
    x[:, 5:] += 1
    after, _ = layer(x, x, x, is_causal=True)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_constant_number_of_keys_makes_a_prefix_the_same() -> None:
    x = torch.randn(2, 8, 16)
    for num_attended, same in ((3.0, True), (None, False)):
        layer = unn.MultiheadAttention(16, 4, batch_first=True, num_attended=num_attended)
        whole, _ = layer(x, x, x, is_causal=True)
        part, _ = layer(x[:, :5], x[:, :5], x[:, :5], is_causal=True)
        assert torch.allclose(part, whole[:, :5], atol=1e-5) == same


def test_mask_hides_keys() -> None:
    layer = unn.MultiheadAttention(16, 4, batch_first=True)
    q, kv = torch.randn(2, 3, 16), torch.randn(2, 8, 16)
    mask = torch.arange(8) < 5
    before, _ = layer(q, kv, kv, mask.expand(3, 8))
    kv[:, 5:] += 1
    after, _ = layer(q, kv, kv, mask.expand(3, 8))
    torch.testing.assert_close(before, after)


def test_grouped_queries_share_keys_and_values() -> None:
    grouped = unn.MultiheadAttention(16, 4, num_kv_heads=2, batch_first=True)
    assert grouped.k_proj.weight.shape == grouped.v_proj.weight.shape == (8, 16)
    full = unn.MultiheadAttention(16, 4, batch_first=True)
    state = grouped.state_dict()
    for name in ("k_proj", "v_proj"):
        for part in ("weight", "bias"):
            heads = state[f"{name}.{part}"].unflatten(0, (2, 4)).repeat_interleave(2, 0)
            state[f"{name}.{part}"] = heads.flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 8, 16)
    torch.testing.assert_close(grouped(x, x, x)[0], full(x, x, x)[0])


def test_dropout_only_in_training() -> None:
    layer = unn.MultiheadAttention(16, 4, dropout=0.5)
    x = torch.randn(6, 3, 16)
    assert not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.eval()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


def test_batch_first_only_moves_the_axis() -> None:
    layer = unn.MultiheadAttention(16, 4)
    x = torch.randn(6, 3, 16)
    y, _ = layer(x, x, x)
    layer.batch_first = True
    x = x.transpose(0, 1)
    torch.testing.assert_close(layer(x, x, x)[0].transpose(0, 1), y)


def test_other_sizes_for_key_and_value() -> None:
    layer = unn.MultiheadAttention(16, 4, kdim=5, vdim=7)
    y, _ = layer(torch.randn(6, 3, 16), torch.randn(9, 3, 5), torch.randn(9, 3, 7))
    assert y.shape == (6, 3, 16)


@pytest.mark.parametrize("sizes", [(16, 3, None), (16, 4, 3), (16, 4, 0)])
def test_sizes_that_do_not_divide_are_refused(sizes: tuple) -> None:
    width, heads, kv_heads = sizes
    with pytest.raises(ValueError, match="is not a multiple of"):
        unn.MultiheadAttention(width, heads, num_kv_heads=kv_heads)
