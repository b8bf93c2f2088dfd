"""What stands between a model and its parameters is refused by name, and the model stays."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import unitscale as us
from growth import tiny
from unitscale.anatomy.whole import unwrapped


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, x):
        return 2 * x


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_scaled(model):
    return compiled(us.unit_scale(model, "fp8"))


def compiled_layer(model):
    model.model.layers[1] = compiled(model.model.layers[1])
    return model


def data_parallel(model):
    return nn.DataParallel(model)


def masked(model):
    return us.compress.mask_smallest(model, 0.5)


def masked_bias(model):
    prune.l1_unstructured(model.model.layers[0].self_attn.q_proj, "bias", amount=1)
    return model


def parametrized(model):
    parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight", Doubled())
    return model


def scaled_part(model):
    us.unit_scale(model.model, "fp8")
    return model


def shared(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return model


def without_values(model):
    return model.to("meta")


def quantized(model):
    return us.deploy.quantize(model, "fp8-serve", [tiny.batch_for(model)["input_ids"]])


REFUSED = {
    compiled: "this LlamaForCausalLM is wrapped by torch.compile; give the model itself, model._or",
    compiled_scaled: "this LlamaForCausalLM is wrapped by torch.compile",
    compiled_layer: "'model.layers.1' of this LlamaForCausalLM is wrapped.*module.compile",
    data_parallel: "this is a DataParallel around a model; give the model: model.module",
    masked: "weight of 'model.layers.0.self_attn.q_proj' is masked.*us.compress.make_permanent",
    masked_bias: "bias of 'model.*q_proj' is masked.*call torch.nn.utils.prune.remove",
    parametrized: "weight of 'model.layers.0.mlp.up_proj' is computed by a parametrization",
    scaled_part: "'model' of this LlamaForCausalLM is scaled alone.*us.unscale on it first",
    shared: "'model.layers.1.mlp.gate_proj.weight' of this Llama.* is shared with another layer",
    without_values: "'model.embed_tokens.weight' of this LlamaForCausalLM is on the device meta",
    quantized: "layers of this LlamaForCausalLM are quantized",
}

WAYS = {
    "growth.plan": lambda model, plans: us.growth.plan(model, width=24),
    "growth.apply": lambda model, plans: us.growth.apply(model, plans[0]),
    "compress.plan": lambda model, plans: us.compress.plan(model, importance=plans[2], ffn=8),
    "compress.apply": lambda model, plans: us.compress.apply(model, plans[1]),
    "measure": lambda model, plans: us.compress.measure(model, [tiny.batch_for(plans[3])]),
    "magnitude": lambda model, plans: us.compress.magnitude(model),
    "layer_losses": lambda model, plans: us.compress.layer_losses(
        model, [tiny.batch_for(plans[3])]
    ),
    "candidates": lambda model, plans: us.compress.candidates(model, 1000),
}
"""A model, and what was planned for it as it was before."""


def values_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_would_be_missed_is_refused_by_name_everywhere_and_the_model_stays(change):
    model = tiny.llama(attention_bias=True)
    importance = us.compress.drawn(model)
    plans = (
        us.growth.plan(model, width=24),
        us.compress.plan(model, importance=importance, ffn=8),
        importance,
        copy.deepcopy(model),
    )
    model = change(model)
    before = {} if change is without_values else values_of(model)
    for name, way in WAYS.items():
        if change is shared and name.endswith("apply"):
            continue  # which knows its model by its names, and there are others now
        with pytest.raises(ValueError, match=REFUSED[change]) as error:
            way(model, plans)
        assert "\n" not in str(error.value), name
    assert all(value.equal(before[key]) for key, value in model.state_dict().items() if before)


def test_layers_that_came_to_share_weights_are_none_of_a_plan():
    model = tiny.llama()
    made = us.growth.plan(model, width=24)
    with pytest.raises(ValueError, match=r"the plan is for a llama .* make a plan of this model"):
        us.growth.apply(shared(model), made)


def test_a_model_that_nothing_wraps_is_itself():
    model = tiny.gpt2()
    assert unwrapped(model) is model
    assert unwrapped(compiled(model)) is model
