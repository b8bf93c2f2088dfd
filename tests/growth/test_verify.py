import pytest
import torch

import unitscale as us
from growth import tiny


@pytest.mark.parametrize("factor", [1.01, 0.5])
def test_a_wrong_duplication_factor_is_caught(factor):
    small = tiny.llama()
    grown = us.growth.apply(small, us.growth.plan(small, width=24))
    with torch.no_grad():
        grown.model.layers[1].mlp.down_proj.weight.mul_(factor)
    proof = us.growth.verify(small, grown, tiny.batch_for(small))
    assert not proof.preserved
    assert "function changed" in str(proof)


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_bits_are_compared_in_float32(name, dtype):
    small = tiny.MODELS[name]().to(dtype)
    batch = tiny.batch_for(small)
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    doubled = us.growth.apply(small, us.growth.plan(small, width=24, noise=0.0))
    proof = us.growth.verify(small, doubled, batch)
    assert proof.difference <= 1e-5 * proof.largest  # halves are exact
    grown = us.growth.apply(small, us.growth.plan(small, width=36))
    assert us.growth.verify(small, grown, batch).preserved
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.mul_(0.9)
    assert not us.growth.verify(small, grown, batch).preserved
    assert next(grown.parameters()).dtype == dtype


def test_an_epsilon_that_did_not_shrink_is_caught():
    small = tiny.llama()
    grown = us.growth.apply(small, us.growth.plan(small, width=18))
    grown.model.norm.variance_epsilon = small.config.rms_norm_eps
    assert not us.growth.verify(small, grown, tiny.batch_for(small)).preserved


def test_modes_and_dropout_do_not_matter_and_stay():
    small = tiny.gpt2(resid_pdrop=0.5)
    small.transformer.h[0].eval()
    grown = us.growth.apply(small, us.growth.plan(small, width=24))
    assert us.growth.verify(small, grown, tiny.batch_for(small)).preserved
    assert small.training
    assert not small.transformer.h[0].training
    assert grown.training


def test_what_cannot_be_compared_is_refused():
    small = tiny.llama()
    grown = us.growth.apply(small, us.growth.plan(small, width=24))
    ids = tiny.batch_for(small)["input_ids"]
    with pytest.raises(ValueError, match=r"\[3, 7, 12\] and the grown one's \[3, 7, 24\]"):
        us.growth.verify(Body(small), Body(grown), ids)
    with torch.no_grad():
        small.lm_head.weight[0] = torch.nan
    with pytest.raises(ValueError, match="output holds NaN or infinity; give another"):
        us.growth.verify(small, grown, tiny.batch_for(small))


class Body(torch.nn.Module):
    """A model without its head."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model.model(ids).last_hidden_state
