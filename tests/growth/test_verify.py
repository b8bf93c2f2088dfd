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


def test_parameters_of_two_dtypes_keep_theirs():
    small = tiny.llama()
    small.model.embed_tokens.to(torch.bfloat16)
    small.model.embed_tokens.register_forward_hook(lambda module, args, out: out.float())
    grown = us.growth.apply(small, us.growth.plan(small, depth=3))
    pruned = us.compress.apply(
        small, us.compress.plan(small, importance=us.compress.drawn(small, 0), depth=1)
    )
    for found in (grown, pruned):
        assert found.model.embed_tokens.weight.dtype == torch.bfloat16
        assert found.lm_head.weight.equal(small.lm_head.weight)
        assert found.lm_head.weight.dtype == torch.float32


def test_buffers_that_are_wider_than_the_weights_stay_so():
    small = tiny.llama()
    frequencies = small.model.rotary_emb.inv_freq.clone()
    small.to(torch.bfloat16)
    small.model.rotary_emb.inv_freq = frequencies  # as from_pretrained leaves them
    grown = us.growth.apply(small, us.growth.plan(small, width=24))
    assert grown.model.rotary_emb.inv_freq.equal(frequencies)
    assert grown.model.norm.weight.dtype == torch.bfloat16


def test_a_quantized_model_is_refused_by_name():
    model = tiny.llama()
    batch = tiny.batch_for(model)
    us.deploy.quantize(model, "fp8", calibration=[batch])
    message = r"layers of this LlamaForCausalLM are quantized \(us.deploy.quantize\), the first is"
    with pytest.raises(ValueError, match="growth: 1[0-9] " + message):
        us.growth.plan(model, width=24)
    with pytest.raises(ValueError, match="compress: 1[0-9] " + message):
        us.compress.magnitude(model)
