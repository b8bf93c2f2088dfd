"""One format for every tensor: what is rounded, what is not, and what is held."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import unitscale as us
from train.held_values import NORMAL, SMALLEST, assert_held, is_held
from train.tiny import MODEL
from unitscale.models import CharLM, CharLMConfig
from unitscale.recipes import TRUE_FP16, Throughout
from unitscale.train.throughout import EveryResult, hold_, rounded, rounding

FORMS = ("fp16-true", "fp16-true-stochastic", "fp16-true-ftz")
NEAREST, STOCHASTIC, FLUSHED = (TRUE_FP16[name].throughout for name in FORMS)


def test_assert_held_sees_one_value_and_an_empty_list() -> None:
    x = torch.ones(4)
    assert_held({"x": x, "tiny": torch.tensor([SMALLEST])}, NEAREST)
    for wrong in ({"x": x + torch.tensor([0, 0, 2.0**-20, 0])}, {}):
        with pytest.raises(AssertionError):
            assert_held(wrong, NEAREST)
    with pytest.raises(AssertionError):
        assert_held({"x": torch.tensor([SMALLEST])}, FLUSHED)


def test_stochastic_runs_of_two_seeds_draw_other_bits() -> None:
    x = torch.rand(1000)
    a, b, c = (rounded(x, STOCHASTIC, seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_flushing_takes_subnormals_alone_and_keeps_signs_and_what_is_not_finite() -> None:
    x = torch.tensor([NORMAL, NORMAL * 0.99, -SMALLEST, NORMAL * (1 - 2.0**-12), 1.0])
    assert rounded(x, FLUSHED, 0).tolist() == [NORMAL, 0.0, 0.0, NORMAL, 1.0]
    assert rounded(x, NEAREST, 0)[2] == -SMALLEST
    odd = rounded(torch.tensor([torch.inf, -torch.inf, torch.nan, 7e4]), FLUSHED, 0)
    assert odd[:2].tolist() == [torch.inf, -torch.inf]
    assert odd[2].isnan()
    assert odd[3] == torch.inf


@pytest.mark.parametrize("how", [NEAREST, FLUSHED])
def test_the_first_moment_is_held_at_the_scale_of_the_loss(how: Throughout) -> None:
    """`2^-20` is lost without a loss scale where subnormals are flushed, and kept at 2^11."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], 1.0, weight_decay=0.0)
    for scale in (2.0**11, 1.0):
        optimizer.state[parameter] = {"exp_avg": torch.full((2,), 2.0**-20)}
        hold_(optimizer, how, loss_scale=scale, seed=0, step=1)
        lost = how is FLUSHED and scale == 1
        assert optimizer.state[parameter]["exp_avg"].tolist() == [0.0 if lost else 2.0**-20] * 2


def test_a_loss_scale_beyond_the_range_is_seen() -> None:
    """The scale itself may be larger than FP16's largest value; gradients that are may not."""
    model = CharLM(CharLMConfig(**MODEL, context=16))
    ids = torch.arange(32).view(2, 16)
    for log2, is_finite in ((16, True), (30, False)):
        model.zero_grad()
        with EveryResult(NEAREST):
            loss = model(ids, ids)
            loss.backward(torch.full_like(loss, 2.0**log2))
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters()) == is_finite


def test_in_place_results_and_outputs_given_are_rounded_where_they_are() -> None:
    x = torch.full((3,), 1.0)
    out = torch.empty(3)
    with EveryResult(NEAREST) as mode:
        x.add_(2.0**-13)
        torch.mul(x, 1 + 2.0**-12, out=out)
        view = x[:2]
        view.mul_(1 + 2.0**-12)
    assert x.tolist() == out.tolist() == [1.0, 1.0, 1.0]
    assert view.data_ptr() == x.data_ptr()
    assert mode.count == 3


def test_the_loss_the_statistics_and_constants_stay_in_fp32() -> None:
    logits = torch.randn(8, 5, requires_grad=True)
    with EveryResult(NEAREST):
        loss = F.cross_entropy(logits, torch.arange(8) % 5)
        angle = torch.arange(3, dtype=torch.float32) * 0.1
        turned = logits[:3, 0] * angle.cos()
        _, mean, _ = torch.native_layer_norm(logits, [5], None, None, 1e-5)
    assert loss.item() == F.cross_entropy(logits, torch.arange(8) % 5).item()
    assert torch.equal(angle, torch.arange(3, dtype=torch.float32) * 0.1)
    assert torch.equal(mean, torch.native_layer_norm(logits, [5], None, None, 1e-5)[1])
    assert is_held(turned.detach(), NEAREST)


def test_a_pass_that_rounded_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no tensor was rounded to FP16"), rounding(NEAREST, 0):
        torch.arange(3)
    with rounding(None):
        assert (torch.ones(1) + 2.0**-20).item() != 1.0


@pytest.mark.parametrize("call", [us.apply_recipe, us.unit_scale])
def test_a_model_that_is_not_in_a_run_cannot_have_it(call: Any) -> None:
    model = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'fp16-true' rounds every tensor of a run"):
        call(model, "fp16-true")
    assert call(model, "mxfp8") is model  # it was left as it was


@pytest.mark.parametrize(
    ("unit_scaled", "log2", "low", "high"),
    [
        (False, 0, 0.05, 0.5),
        (False, 11, 0.0, 0.001),
        (False, -8, 0.99, 1.0),
        (True, 0, 0.0, 0.001),
        (True, -8, 0.0, 0.05),
    ],
)
def test_the_claim_of_the_paper_in_one_step(
    unit_scaled: bool, log2: int, low: float, high: float
) -> None:
    """The share of weight gradients that flushing takes: seed 0 gave 0.15, 0.0001, 1, 0.0001, 0.01.

    In between lie octaves of the loss scale, so the bands do not depend on the seed.
    """
    torch.manual_seed(0)
    model = CharLM(CharLMConfig(width=32, depth=1, context=64, unit_scaled=unit_scaled))
    ids = torch.randint(0, 256, (16, 65))
    with EveryResult(FLUSHED):
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward(torch.full_like(loss, 2.0**log2))
    # Of the embedding, bytes that do not occur have no gradient in any case.
    grads = [p.grad for name, p in model.named_parameters() if "embedding" not in name]
    lost = torch.cat([(grad == 0).float().flatten() for grad in grads]).mean().item()
    assert low <= lost <= high
