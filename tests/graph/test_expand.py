"""Attention that is captured as one op is written out, and computes the same to the bit."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from units.training import assert_trains_as_plain, assert_written_out
from unitscale.units import unit_scale
from unitscale.units.forward import session_of

LENGTH, BATCH, WIDTH, HEADS = 5, 3, 8, 2
OP = "multi_head_attention_forward"


def draw(length: int = LENGTH, batch: int = BATCH) -> Tensor:
    source = torch.Generator().manual_seed(length + batch)
    return torch.randn(length, batch, WIDTH, generator=source)


class Attention(nn.Module):
    """Calls nn.MultiheadAttention in some way; the loss is far from unit scale."""

    def __init__(self, call, **settings) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **settings)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        output, weights = self.call(self.attention, self.before(x) * 20, x)
        loss = output.square().mean() * 1e-3
        return loss if weights is None else loss + weights.square().mean()


def itself(attention, x, y):
    return attention(x, x, x, need_weights=False)


def itself_with_weights(attention, x, y):
    return attention(x, x, x)


def weights_of_each_head(attention, x, y):
    return attention(x, x, x, average_attn_weights=False)


def from_another(attention, x, y):
    return attention(x, y, y, need_weights=False)


def from_two_others(attention, x, y):
    return attention(x, y, x + y, need_weights=False)


def causal(attention, x, y):
    mask = nn.Transformer.generate_square_subsequent_mask(len(x))
    return attention(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)


def causal_with_weights(attention, x, y):
    mask = nn.Transformer.generate_square_subsequent_mask(len(x))
    return attention(x, x, x, attn_mask=mask, is_causal=True)


def padded(attention, x, y):
    padding = torch.arange(x.shape[1])[:, None] + torch.arange(len(x)) > 5
    return attention(x, x, x, key_padding_mask=padding, need_weights=False)


def padded_and_masked(attention, x, y):
    padding = torch.arange(x.shape[1])[:, None] + torch.arange(len(x)) > 5
    mask = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    return attention(x, x, x, key_padding_mask=padding, attn_mask=mask)


def mask_for_each_head(attention, x, y):
    mask = torch.linspace(-1, 0, x.shape[1] * HEADS * len(x) ** 2)
    mask = mask.view(x.shape[1] * HEADS, len(x), len(x))
    return attention(x, x, x, attn_mask=mask, need_weights=False)


def checkpointed(attention, x, y):
    def body(x: Tensor) -> Tensor:
        return attention(x, x, x, need_weights=False)[0]

    return checkpoint(body, x, use_reentrant=False), None


CALLS = [
    itself,
    itself_with_weights,
    weights_of_each_head,
    from_another,
    from_two_others,
    causal,
    causal_with_weights,
    padded,
    padded_and_masked,
    mask_for_each_head,
    checkpointed,
]


def products(model: nn.Module) -> set[str]:
    return {
        executable.tensors[node].name
        for executable in session_of(model).executables
        for program in executable.programs.values()
        for node in program.rounded
    }


@pytest.mark.parametrize("call", CALLS)
def test_training_is_bit_identical(call) -> None:
    model = assert_trains_as_plain(lambda: Attention(call), (draw(),))
    if call is not causal_with_weights:  # stays one op
        assert_written_out(model, OP)


@pytest.mark.parametrize("settings", [{"bias": False}, {"dropout": 0.25}], ids=str)
def test_training_is_bit_identical_with(settings) -> None:
    model = assert_trains_as_plain(lambda: Attention(from_another, **settings), (draw(),))
    assert_written_out(model, OP)


@pytest.mark.parametrize("call", [causal, padded_and_masked])
def test_sizes_may_change(call) -> None:
    model = assert_trains_as_plain(lambda: Attention(call), (draw(),), (draw(6, 4),), (draw(7, 2),))
    assert_written_out(model, OP)


def from_narrower(attention, x, y):
    return attention(x, y[..., :4], y[..., 2:5], need_weights=False)


@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_values_of_other_widths_are_written_out(bias) -> None:
    make = partial(Attention, from_narrower, kdim=4, vdim=3, bias=bias)
    assert_written_out(assert_trains_as_plain(make, (draw(),)), OP)


UNUSUAL = {
    "bias of keys": (itself, {"add_bias_kv": True}),
    "zero attention": (itself, {"add_zero_attn": True}),
}


@pytest.mark.parametrize(("call", "settings"), UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_attention_stays_one_op(call, settings) -> None:
    make = partial(Attention, call, **settings)
    model = assert_trains_as_plain(make, (draw(),), least_units=2)
    with pytest.raises(AssertionError):
        assert_written_out(model, OP)


def test_products_of_an_encoder_layer_are_rounded() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0)
    unit_scale(layer, "fp8", inner="eager")
    layer(draw()).square().mean().backward()
    assert len(products(layer)) == 5
    assert {"self_attn.linear", "self_attn.scaled_dot_product_attention"} <= products(layer)
