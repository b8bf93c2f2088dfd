"""Any causal language model as a loss of ids and targets."""

import pytest
import torch
from torch import Tensor, nn

from unitscale.models.next_byte import BYTES, NextByte, as_loss, build

SMALL = {"context": 16, "width": 32, "depth": 1}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_built_in_model_has_the_loss_of_transformers_labels(name: str) -> None:
    pytest.importorskip("transformers")
    model = build(name, SMALL)
    window = torch.randint(BYTES, (3, 17))
    ids, targets = window[:, :-1], window[:, 1:]
    loss = model(ids, targets)
    labels = torch.cat([ids[:, :1], targets], dim=1)[:, :16]
    inner = model.model(input_ids=ids, labels=labels).loss
    unseen = nn.functional.cross_entropy(model.model(ids).logits[:, -1].float(), targets[:, -1])
    torch.testing.assert_close(loss, (inner * 15 + unseen) / 16)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_built_in_model_has_about_a_million_parameters(name: str) -> None:
    pytest.importorskip("transformers")
    assert 0.5e6 < sum(p.numel() for p in build(name, {}).parameters()) < 2e6


class WithTargets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(BYTES, BYTES)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = self.table(ids)
        return logits if targets is None else logits.mean()


def test_model_that_takes_targets_is_used_as_it_is() -> None:
    model = WithTargets()
    assert as_loss(model, "m") is model


def test_model_of_logits_gets_a_loss() -> None:
    model = as_loss(nn.Sequential(nn.Embedding(BYTES, 8), nn.Linear(8, BYTES)), "m")
    assert isinstance(model, NextByte)
    ids = torch.randint(BYTES, (2, 5))
    assert model(ids, ids).shape == ()


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"m returned a int; expected a torch\.nn\.Module"):
        as_loss(3, "m")


def test_model_of_too_few_symbols_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=100, n_layer=1, n_embd=8, n_head=1)
    with pytest.raises(ValueError, match="m has 100 symbols; expected one for each of 256 bytes"):
        as_loss(transformers.GPT2LMHeadModel(config), "m")
