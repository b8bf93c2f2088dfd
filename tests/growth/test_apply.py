import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import unitscale as us
from growth import tiny

FP32 = 2.0**-24
ROUNDINGS = 32
"""What a sum may be off by, in units of half an epsilon of the largest output: two layers with
some dozens of sums each, whose errors add up as a random walk does."""

WIDER = {"width": 24}
CASES = [
    ("gpt2", WIDER),
    ("gpt2", {"width": 18}),
    ("gpt2", {"width": 36, "depth": 3, "noise": 0.05}),
    ("gpt2", {"ffn": 70}),
    ("llama", WIDER),
    ("llama", {"width": 18}),
    ("llama", {"width": 18, "heads": 9, "kv_heads": 3, "ffn": 33, "depth": 3}),
    ("llama", {"width": 36, "noise": 0.05}),
    ("bert", WIDER),
    ("bert", {"width": 36, "noise": 0.05}),
    ("vit", WIDER),
    ("vit", {"width": 30, "depth": 5, "noise": 0.05}),
]


def assert_preserved(small, grown, batch):
    proof = us.growth.verify(small, grown, batch)
    assert proof.difference <= ROUNDINGS * FP32 * max(1.0, proof.largest), proof
    assert proof.preserved


def grown_from(model, **asked):
    return us.growth.apply(model, us.growth.plan(model, **asked))


def test_assert_preserved_fails_for_another_function():
    small = tiny.gpt2()
    with pytest.raises(AssertionError):
        assert_preserved(small, tiny.gpt2(n_layer=3), tiny.batch_for(small))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "asked"), CASES)
def test_grown_models_compute_the_same(name, asked, tied):
    more = {} if name == "vit" else {"tie_word_embeddings": tied}
    small = tiny.MODELS[name](**more)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    grown = grown_from(small, **asked)
    assert_preserved(small, grown, tiny.batch_for(small))
    assert type(grown) is type(small)
    assert all(value.equal(before[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize(
    ("name", "more", "asked"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}, {"width": 18, "depth": 3}),
        ("llama", {"num_key_value_heads": 1}, {"width": 24, "kv_heads": 1}),
        ("llama", {"num_key_value_heads": 4}, {"width": 24}),
        ("gpt2", {"n_inner": 20}, {"width": 24}),
    ],
)
def test_biases_groups_and_inner_widths_of_all_kinds_grow(name, more, asked):
    small = tiny.MODELS[name](**more)
    assert_preserved(small, grown_from(small, **asked), tiny.batch_for(small))


def test_a_classifier_on_bert_grows():
    config = {**tiny.bert().config.to_dict(), "num_labels": 3}
    small = tiny.roughened(BertForSequenceClassification(BertConfig(**config)))
    batch = {"input_ids": tiny.batch_for(tiny.bert())["input_ids"]}
    assert_preserved(small, grown_from(small, width=36), batch)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_gradients_are_those_that_the_rule_for_states_says(name):
    small = tiny.MODELS[name]()
    made, batch = us.growth.plan(small, width=24, noise=0.0), tiny.batch_for(small)
    grown = us.growth.apply(small, made)
    own, found = tiny.gradients(small, batch), tiny.gradients(grown, batch)
    largest = max(grad.abs().max().item() for grad in found.values())
    for key, grad in found.items():
        expected = made.growth(key).moment(own[key], "first")
        assert (grad - expected).abs().max().item() <= ROUNDINGS * FP32 * 4 * largest, key


def test_padding_can_learn():
    for small in (tiny.llama(), tiny.gpt2()):
        grown = grown_from(small, width=18)
        found = tiny.gradients(grown, tiny.batch_for(small))
        ends = [key for key in found if key.endswith(("down_proj.weight", "mlp.c_proj.weight"))]
        # Rows of an nn.Linear, columns of GPT-2's layer.
        new = [found[k][12:] if "down" in k else found[k][:, 12:] for k in ends]
        assert new
        assert all(part.abs().max() > 0 for part in new)


def test_epsilon_of_norms_shrinks_with_padding_and_is_kept_in_the_configuration():
    small = tiny.llama()
    grown = grown_from(small, width=18)
    assert grown.config.rms_norm_eps == pytest.approx(1e-3 * 12 / 18, rel=1e-12)
    assert grown.model.norm.variance_epsilon == grown.config.rms_norm_eps
    grown = grown_from(grown, width=36)
    assert grown.config.rms_norm_eps == pytest.approx(1e-3 * 12 / 18, rel=1e-12)
    assert_preserved(small, grown, tiny.batch_for(small))


def test_aki_changes_the_function_and_leaves_no_ties():
    small = tiny.gpt2()
    batch = tiny.batch_for(small)
    made = us.growth.plan(small, width=24, method="aki")
    proof = us.growth.verify(small, us.growth.apply(small, made), batch)
    assert not made.preserves
    assert not proof.preserved
    rows = {}
    for method, noise in (("fpi", 0.0), ("fpi", 0.05), ("aki", 0.0)):
        torch.manual_seed(0)
        grown = grown_from(small, width=24, method=method, noise=noise)
        optimizer = torch.optim.AdamW(grown.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            grown(**batch).loss.backward()
            optimizer.step()
        out = grown.transformer.h[0].mlp.c_fc.weight.T  # [out, in]
        rows[method, noise] = (out[:48] - out[48:]).abs().max().item()
    assert rows["fpi", 0.0] < 1e-4
    assert rows["fpi", 0.05] > 1e-2
    assert rows["aki", 0.0] > 1e-2


def test_layers_are_interpolated_or_stacked():
    small = tiny.gpt2(n_layer=3)
    firsts = [block.ln_1.weight[0].item() for block in small.transformer.h]
    for method, order in (("interpolate", [0, 0, 1, 1, 2, 2]), ("stack", [0, 1, 2, 0, 1, 2])):
        grown = grown_from(small, depth=6, depth_method=method)
        found = [block.ln_1.weight[0].item() for block in grown.transformer.h]
        assert found == [firsts[layer] for layer in order]


def test_aki_pro_interpolates_and_takes_rows_of_the_next_layer():
    small = tiny.llama()
    made = us.growth.plan(small, width=24, depth=4, method="aki-pro", noise=0.0)
    grown = us.growth.apply(small, made)
    assert made.sources == (0, 0, 1, 1)
    up = grown.model.layers[1].mlp.up_proj.weight
    assert up[:20, :12].equal(small.model.layers[0].mlp.up_proj.weight / 2)
    assert up[20:, :12].equal(small.model.layers[1].mlp.up_proj.weight / 2)


def test_dtype_mode_and_frozen_parameters_stay():
    small = tiny.llama().to(torch.bfloat16).eval()
    small.model.embed_tokens.weight.requires_grad_(False)
    grown = grown_from(small, width=24, depth=3)
    assert not grown.training
    assert {p.dtype for p in grown.parameters()} == {torch.bfloat16}
    assert [n for n, p in grown.named_parameters() if not p.requires_grad] == [
        "model.embed_tokens.weight"
    ]


def test_growth_draws_no_random_numbers_of_others():
    small = tiny.gpt2()
    state = torch.get_rng_state()
    first = grown_from(small, width=24, noise=0.05, experts=2)
    assert torch.get_rng_state().equal(state)
    torch.rand(1)
    again = grown_from(small, width=24, noise=0.05, experts=2)
    assert all(a.equal(b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_plan_applied_twice_is_refused_and_the_model_stays():
    small = tiny.gpt2()
    made = us.growth.plan(small, width=24)
    grown = us.growth.apply(small, made)
    before = {key: value.clone() for key, value in grown.state_dict().items()}
    with pytest.raises(ValueError, match=r"width 24.*the plan was applied to it already"):
        us.growth.apply(grown, made)
    assert all(value.equal(before[key]) for key, value in grown.state_dict().items())
    with pytest.raises(ValueError, match="the model is a LlamaForCausalLM"):
        us.growth.apply(tiny.llama(), made)
