import pytest
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM, GPT2Config, LlamaConfig

import unitscale as us
from growth import tiny
from unitscale.growth.shape import config_of

plan = us.growth.plan


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_plan_prints_each_module_and_how_it_grows():
    text = str(plan(tiny.llama(tie_word_embeddings=True), width=24, depth=3))
    assert "width 12, depth 2, 4 heads (2 of keys and values) of 4, ffn 20" in text
    assert "width 24, depth 3, 8 heads (4 of keys and values) of 4, ffn 40" in text
    assert "layers: 0, 0*, 1 (*: new, adding nothing at first)" in text
    assert "model.layers.*.mlp.down_proj.weight" in text
    assert "[12, 20] -> [24, 40]" in text
    assert "divided by 2 for the tied read-out" in text


def test_plan_of_an_uneven_width_says_what_new_channels_hold():
    assert "new channels hold zero" in str(plan(tiny.llama(), width=18))
    assert "new channels hold the mean of the others" in str(plan(tiny.gpt2(), width=18))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"own shape \(width 12, .*ask for more"),
        ({"width": 8}, "width is 8, and the model's is 12 already"),
        ({"depth": 1}, "depth is 1, and the model's is 2 already"),
        ({"width": 0}, "width is 0; expected a whole number"),
        ({"width": 15}, r"the 2 heads would be 2.5, which do not divide.*multiple of 6"),
        ({"width": 24, "heads": 3}, "3 heads of 6 are not the width of 24.*width of 18"),
        ({"heads": 4, "kv_heads": 2}, "kv_heads is 2 and heads is 4.*leave kv_heads out"),
        ({"width": 24, "method": "fdi"}, "method is 'fdi'; expected fpi, aki, aki-pro"),
        ({"depth": 4, "depth_method": "on top"}, "depth_method is 'on top'; expected identity"),
        ({"width": 24, "noise": 2.0}, "noise is 2.0; expected from 0"),
        ({"width": 18, "method": "aki"}, "width is 18 with method='aki'.*a multiple of 12"),
        ({"width": 24, "seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"experts": 4, "top": 5}, "top is 5 of 4 experts"),
        ({"experts": 4, "router_std": 0.0}, "router_std is 0.0"),
    ],
)
def test_what_cannot_be_grown_is_one_line_and_the_model_stays(asked, message):
    model = tiny.gpt2()
    before = state_of(model)
    with pytest.raises(ValueError, match=message) as error:
        plan(model, **asked)
    assert "\n" not in str(error.value)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"heads": 6, "kv_heads": 4}, "6 heads do not divide into 4 groups"),
        ({"heads": 4, "kv_heads": 4}, "4 heads in 4 groups are fewer in a group than 4 in 2"),
    ],
)
def test_groups_of_heads_keep_their_queries(asked, message):
    with pytest.raises(ValueError, match=message):
        plan(tiny.llama(), **asked)


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        # transformers would make these, and then neither save nor load them.
        ("llama", {"heads": 8, "kv_heads": 2}, "12 with 8 heads.*a width of 16, or heads that"),
        ("llama", {"width": 18, "heads": 4, "kv_heads": 2}, "18 with 4 heads.*of 16 or 20, or"),
        ("llama", {"width": 14}, "the 4 heads would be 4.66667.*a width of 18, a multiple of 6"),
        ("gpt2", {"width": 20}, "the 2 heads would be 3.33333.*a width of 18 or 24, a multiple"),
        ("bert", {"width": 20, "heads": 3, "ffn": 40}, "are not the width of 20.*width of 18"),
        ("vit", {"width": 13}, "the 2 heads would be 2.16667.*a width of 18, a multiple of 6"),
    ],
)
def test_widths_that_heads_do_not_divide_name_the_nearest_that_work(name, asked, message):
    with pytest.raises(ValueError, match=message) as error:
        plan(tiny.MODELS[name](), **asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_width_that_is_planned_is_one_that_transformers_makes_again(name):
    small, planned = tiny.MODELS[name](), 0
    for width in range(13, 25):
        for heads in (None, 4, 6):
            try:
                made = plan(small, width=width, heads=heads)
            except ValueError:
                continue
            config = config_of(small.config, made.small, made.target, made.known)
            again = type(config)(**config.to_dict())
            assert again.hidden_size == width
            planned += 1
    assert planned > (0 if name == "bert" else 1)


def test_what_a_norm_after_each_block_forbids_is_refused():
    with pytest.raises(ValueError, match=r"width is 18; a bert normalizes.*a multiple of 12"):
        plan(tiny.bert(), width=18)
    with pytest.raises(ValueError, match=r"a block of a bert ends with a norm.*interpolate"):
        plan(tiny.bert(), depth=4)
    with pytest.raises(ValueError, match="a bert has no module for its MLP"):
        plan(tiny.bert(), experts=2)
    assert not plan(tiny.bert(), depth=4, depth_method="stack").preserves


def test_unknown_models_are_refused_by_name():
    with pytest.raises(ValueError, match="Linear is no architecture that growth knows"):
        plan(torch.nn.Linear(2, 2), width=4)
    config = DistilBertConfig(vocab_size=8, dim=4, n_layers=1, n_heads=1, hidden_dim=4)
    with pytest.raises(ValueError, match="DistilBertForMaskedLM of model_type 'distilbert'"):
        plan(DistilBertForMaskedLM(config), width=8)
    with pytest.raises(ValueError, match="GPT2LMHeadModel has scale_attn_by_inverse_layer_idx"):
        plan(tiny.gpt2(scale_attn_by_inverse_layer_idx=True), width=24)
    with pytest.raises(ValueError, match=r"has a parameter 'wte.weight'.*expected GPT2LMHead"):
        plan(tiny.gpt2().transformer, width=24)


def test_weights_that_are_not_whole_are_refused():
    model = tiny.gpt2()
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match="weights of this GPT2LMHeadModel are quantized"):
        plan(model, width=24)


def test_a_configuration_is_a_target():
    model = tiny.llama()
    target = LlamaConfig(**{**model.config.to_dict(), "hidden_size": 24, "intermediate_size": 44})
    made = plan(model, target)
    assert (made.target.width, made.target.ffn, made.target.heads) == (24, 44, 4)
    with pytest.raises(ValueError, match="the target is of model_type 'gpt2'"):
        plan(model, GPT2Config())
    with pytest.raises(ValueError, match=r"vocab_size is 64, and the model's 32"):
        plan(model, LlamaConfig(**{**target.to_dict(), "vocab_size": 64}))
    with pytest.raises(ValueError, match="target's heads are of 8, and the model's of 4"):
        plan(model, LlamaConfig(**{**target.to_dict(), "head_dim": 8}))
    with pytest.raises(ValueError, match="both a target and sizes"):
        plan(model, target, width=24)


def test_a_shape_is_a_target():
    model = tiny.gpt2()
    made = plan(model, width=24, depth=4)
    assert plan(model, made.target) == made
