"""u-muP's multipliers of the character model: no bit at 1, right factors elsewhere, no silence."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unitscale.models import CharLM, CharLMConfig
from unitscale.models.config import MULTIPLIERS
from validity import assert_valid_gradients

SMALL = CharLMConfig(vocab_size=11, width=16, depth=2, context=12, unit_scaled=True)


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(11, (3, 13))
    return ids[:, :-1], ids[:, 1:]


def loss(config: CharLMConfig, ids: Tensor, targets: Tensor) -> Tensor:
    torch.manual_seed(0)
    return CharLM(config)(ids, targets)


def test_each_changes_the_loss_and_one_changes_no_bit() -> None:
    ids, targets = batch()
    plain = loss(SMALL, ids, targets)
    assert torch.equal(loss(replace(SMALL, **dict.fromkeys(MULTIPLIERS, 1)), ids, targets), plain)
    for name in MULTIPLIERS:
        assert not torch.equal(loss(replace(SMALL, **{name: 2.0}), ids, targets), plain), name


@pytest.mark.parametrize("mult", [0.5, 2.0])
@pytest.mark.parametrize("residual", ["default", "running-mean"])
def test_gradients_are_valid(mult: float, residual: str) -> None:
    config = replace(SMALL, residual=residual, **dict.fromkeys(MULTIPLIERS, mult))
    assert_valid_gradients(CharLM(config).double(), *batch())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"residual_mult": 0.0}, ValueError, "residual_mult=0.0 is not a positive number"),
        ({"residual_mult": float("nan")}, ValueError, "residual_mult=nan is not a positive"),
        ({"ffn_act_mult": True}, TypeError, "ffn_act_mult=True must be a number"),
        ({"ffn_act_mult": "2"}, TypeError, "ffn_act_mult='2' must be a number"),
        (
            {"loss_softmax_mult": 2.0, "unit_scaled": False},
            ValueError,
            "loss_softmax_mult=2.0 has no meaning in the standard model",
        ),
        (
            {"attn_softmax_mult": 2.0, "layer": "conv"},
            ValueError,
            "attn_softmax_mult=2.0 has no meaning for layer='conv'",
        ),
    ],
)
def test_bad_multiplier_is_named(fields: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        replace(SMALL, **fields)
