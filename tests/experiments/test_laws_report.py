import pytest
import torch

import laws_report
import rounded_lm


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_integers_are_on_a_grid_that_holds_the_largest(bits):
    x = torch.randn(4, 50)
    found = rounded_lm.to_integers(x, bits, rows=True)
    step = x.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = found / step
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert codes.abs().max() <= 2 ** (bits - 1)
    inside = x.abs() <= x.abs().amax(dim=1, keepdim=True)
    assert ((found - x).abs()[inside] <= (step / 2).expand_as(x)[inside] * (1 + 1e-5)).all()


def test_gradient_passes_straight_through():
    x = torch.randn(8, requires_grad=True)
    rounded_lm.through(x, rounded_lm.to_integers(x, 3)).sum().backward()
    assert torch.equal(x.grad, torch.ones(8))


def test_model_without_bits_is_the_plain_one():
    ids = torch.randint(256, (2, 64))
    losses = []
    for options in ({"weight_bits": 0}, {"weight_bits": 4}, {"weight_bits": 0, "input_bits": 4}):
        torch.manual_seed(0)
        losses.append(rounded_lm.build(width=16, **options)(ids, ids).item())
    torch.manual_seed(0)
    config = rounded_lm.CharLMConfig(width=16, depth=2, heads=2, context=64)
    assert rounded_lm.CharLM(config)(ids, ids).item() == losses[0]
    assert len(set(losses)) == 3


def test_rows_of_integers_have_bits_and_no_recipe():
    run = {
        "model": "experiments/rounded_lm.py:build",
        "recipe": "fp32",
        "n_params": "100",
        "n_embedding_params": "40",
        "n_tokens": "7",
        "loss": "2",
        "seed": "0",
        "diverged": "false",
        "model.weight_bits": "4",
        "model.input_bits": "",
    }
    found = laws_report.cells_of(run)
    assert (found["N"], found["recipe"], found["P_w"], found["P_a"]) == (60, "", 4, "")
    plain = laws_report.cells_of(run | {"model": "attention", "model.weight_bits": ""})
    assert (plain["recipe"], plain["P_w"]) == ("fp32", "")
