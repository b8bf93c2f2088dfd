"""The character language model: gradients, scales at the start, one definition, learning."""

import copy
import itertools
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from marks import slow
from unitscale.models import CharLM, CharLMConfig
from unitscale.models.config import CHOICES
from validity import assert_valid_gradients

LAYERS, NORMS, RESIDUALS = (CHOICES[name] for name in ("layer", "norm", "residual"))
SMALL = CharLMConfig(vocab_size=11, width=16, depth=2, context=12)


def batch(config: CharLMConfig, rows: int = 3) -> tuple[Tensor, Tensor]:
    ids = torch.randint(config.vocab_size, (rows, config.context + 1))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize(
    ("layer", "norm", "residual"), list(itertools.product(LAYERS, NORMS, RESIDUALS))
)
def test_gradients_are_valid(layer: str, norm: str, residual: str) -> None:
    config = replace(SMALL, layer=layer, norm=norm, residual=residual, unit_scaled=True, bias=True)
    assert_valid_gradients(CharLM(config).double(), *batch(config))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_valid_with_dropout(layer: str) -> None:
    config = replace(SMALL, layer=layer, unit_scaled=True, dropout=0.2)
    assert_valid_gradients(CharLM(config).double(), *batch(config))


def test_a_free_hidden_layer_is_invalid() -> None:
    model = CharLM(replace(SMALL, unit_scaled=True)).double()
    model.trunk[0].body.qkv.constraint = None
    with pytest.raises(AssertionError, match=r"embedding.*cosine to the true gradient is"):
        assert_valid_gradients(model, *batch(SMALL))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("unit_scaled", [False, True])
def test_model_looks_back_only(layer: str, unit_scaled: bool) -> None:
    model = CharLM(replace(SMALL, layer=layer, unit_scaled=unit_scaled))
    ids, _ = batch(SMALL)
    before = model(ids)
    ids[:, 7:] = (ids[:, 7:] + 1) % 11
    after = model(ids)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    torch.testing.assert_close(model(ids[:, :7]), before[:, :7])
    assert not torch.allclose(after[:, 7:], before[:, 7:])


@pytest.mark.parametrize("layer", LAYERS)
def test_both_parametrizations_have_the_same_parameters(layer: str) -> None:
    standard, unit = (CharLM(replace(SMALL, layer=layer, unit_scaled=u)) for u in (False, True))
    shapes = [{n: p.shape for n, p in m.state_dict().items()} for m in (standard, unit)]
    assert shapes[0] == shapes[1]
    assert shapes[0].keys() == dict(standard.named_parameters()).keys()


@pytest.mark.parametrize(
    ("layer", "depth", "millions"), [("attention", 8, 1.58), ("conv", 8, 1.17), ("rnn", 2, 0.40)]
)
def test_parameter_count_is_the_papers(layer: str, depth: int, millions: float) -> None:
    """Outside embedding and read-out, with biases; the paper's attention adds 8 * 128^2 * 1.03 for
    relative positions, which rotary positions do without (its total is 1.72)."""
    config = CharLMConfig(layer=layer, depth=depth, bias=True)
    count = sum(
        p.numel()
        for name, p in CharLM(config).named_parameters()
        if name not in ("embedding.weight", "readout.weight", "readout.bias")
    )
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("unit_scaled", [False, True])
def test_copies_and_state_dict_keep_the_function(layer: str, unit_scaled: bool) -> None:
    config = replace(SMALL, layer=layer, unit_scaled=unit_scaled)
    model, (ids, targets) = CharLM(config), batch(SMALL)
    loaded = CharLM(config)
    loaded.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        torch.testing.assert_close(other(ids, targets), model(ids, targets), rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("unit_scaled", [slow(False), True])
def test_compiles_to_one_graph(layer: str, unit_scaled: bool) -> None:
    model = CharLM(replace(SMALL, layer=layer, unit_scaled=unit_scaled, depth=1))
    ids, targets = batch(SMALL)
    expected = model(ids, targets)
    expected.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    got = torch.compile(model, backend="aot_eager", fullgraph=True)(ids, targets)
    got.backward()
    torch.testing.assert_close(got, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])


@pytest.mark.parametrize("unit_scaled", [False, True])
def test_first_loss_is_that_of_a_uniform_guess_or_a_little_above(unit_scaled: bool) -> None:
    config = CharLMConfig(depth=2, unit_scaled=unit_scaled)
    loss = CharLM(config)(*batch(config, 8)).item()
    # Standard logits have variance 2 * 128 / (128 + 256): half of that on top of ln 256 = 5.545.
    # Unit-scaled logits have variance 1 / 128.
    assert loss == pytest.approx(5.549 if unit_scaled else 5.88, abs=0.05)


def test_long_input_is_refused() -> None:
    with pytest.raises(ValueError, match="ids has 13 positions, more than context=12"):
        CharLM(SMALL)(torch.zeros(1, 13, dtype=torch.long))
