from dataclasses import replace

import pytest
import torch

import unitscale as us
from growth import tiny


def scores(model):
    return us.compress.drawn(model)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_number_of_parameters_is_known_before(name):
    model = tiny.MODELS[name]()
    for asked in ({"ffn": 7}, {"depth": 1}, {"kv_heads" if name == "llama" else "heads": 1}):
        made = us.compress.plan(model, importance=scores(model), **asked)
        pruned = us.compress.apply(model, made)
        own = [sum(p.numel() for p in one.parameters()) for one in (model, pruned)]
        assert made.parameters == tuple(own)


def test_the_highest_scores_are_kept_in_order_and_of_equal_ones_the_first():
    model = tiny.llama()
    found = scores(model)
    neurons = torch.zeros(2, 20, dtype=torch.float64)
    neurons[0, [17, 3]] = 1.0
    given = us.compress.Importance(
        heads=found.heads, neurons=neurons, channels=found.channels, layers=found.layers
    )
    made = us.compress.plan(model, importance=given, ffn=3)
    assert made.neurons == ((0, 3, 17), (0, 1, 2))
    least = us.compress.plan(model, importance=given.reversed(), ffn=3)
    assert least.neurons[0] == (0, 1, 2)


def test_query_heads_stay_in_their_group():
    model = tiny.llama()  # four heads in two groups
    found = scores(model)
    heads = torch.tensor([[1.0, 9.0, 3.0, 2.0]] * 2, dtype=torch.float64)
    given = us.compress.Importance(
        heads=heads, neurons=found.neurons, channels=found.channels, layers=found.layers
    )
    one_each = us.compress.plan(model, importance=given, heads=2, kv_heads=2)
    assert one_each.heads == ((1, 2),) * 2
    assert one_each.kv_heads == ((0, 1),) * 2
    one_group = us.compress.plan(model, importance=given, kv_heads=1)
    assert one_group.heads == ((0, 1),) * 2
    assert one_group.kv_heads == ((0,),) * 2
    alone = tiny.llama(num_key_value_heads=4)
    assert us.compress.plan(alone, importance=given, heads=2).target.kv_heads == 2
    assert us.compress.plan(model, importance=given, heads=2).target.kv_heads == 2


@pytest.mark.parametrize("share", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_budget_is_met(name, share):
    model = tiny.MODELS[name]()
    own = sum(p.numel() for p in model.parameters())
    made = us.compress.plan(model, importance=scores(model), parameters=round(share * own))
    assert 0.94 * share * own <= made.parameters[1] <= 1.05 * share * own
    assert share < 1 or made.target == made.old


def test_candidates_are_near_the_budget_and_the_first_keeps_depth():
    model = tiny.llama(hidden_size=32, intermediate_size=64)
    own = sum(p.numel() for p in model.parameters())
    found = us.compress.candidates(model, own * 3 // 4)
    assert len(found) > 6
    assert found[0].depth == 2
    assert len(set(found)) == len(found)


LLAMA, GPT2 = tiny.llama, tiny.gpt2


@pytest.mark.parametrize(
    ("make", "asked", "message"),
    [
        (LLAMA, {"width": 13}, "width is 13, and the model's is 12.*no model larger"),
        (LLAMA, {"depth": 3}, "depth is 3, and the model's is 2"),
        (LLAMA, {"ffn": 0}, "ffn is 0; expected a whole number of at least 1"),
        (LLAMA, {"ffn": 2.5}, "ffn is 2.5; expected a whole number"),
        (LLAMA, {"width": 10}, "width is 10 with 4 heads.*expected a width of 8 or 12, or heads"),
        (LLAMA, {"heads": 3}, "3 heads do not divide into 2 groups"),
        (LLAMA, {"heads": 4, "kv_heads": 1}, "more in a group"),
        (GPT2, {"width": 8}, "width is 8; heads of 6.*expected 6 or 12, a multiple of 6"),
        (GPT2, {"width": 12, "heads": 1}, "heads is 1; heads of 6.*expected heads=2"),
        (GPT2, {"heads": 2, "kv_heads": 1}, "kv_heads is 1; a gpt2 has as many"),
        (LLAMA, {}, "nothing to prune to"),
        (LLAMA, {"ffn": 3, "parameters": 9}, "more than one target"),
        (LLAMA, {"parameters": 10**6}, r"the target is 1,000,000 parameters, and the model has"),
        (LLAMA, {"parameters": 3}, "no shape has 3 parameters"),
        (LLAMA, {"parameters": 0}, "parameters is 0"),
        (LLAMA, {"target": "small"}, "the target is a str; expected a Shape"),
    ],
)
def test_bad_targets_are_one_line(make, asked, message):
    model = make()
    with pytest.raises(ValueError, match=message) as error:
        us.compress.plan(model, importance=scores(model), **asked)
    assert "\n" not in str(error.value)


def test_scores_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"neurons is of shape \[2, 20\].*would be \[2, 30\]"):
        us.compress.plan(tiny.llama(intermediate_size=30), importance=scores(tiny.llama()), ffn=3)
    with pytest.raises(ValueError, match="heads holds NaN"):
        us.compress.Importance(
            heads=torch.tensor([float("nan")]),
            neurons=torch.zeros(1),
            channels=torch.zeros(1),
            layers=torch.zeros(1),
        )


def test_a_plan_says_what_it_keeps():
    model = tiny.llama()
    made = us.compress.plan(model, importance=scores(model), heads=2, depth=1)
    text = str(made)
    assert "llama: width 12, depth 2" in text
    assert f"layers kept: {made.layers[0]}" in text
    assert f"heads kept in layer {made.layers[0]}" in text


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"head_dim": 2}, "target's heads are of 2, and the model's of 4; heads keep their size"),
        ({"experts": 2}, "target has 2 experts; pruning makes no mixture: expected experts=1"),
    ],
)
def test_shapes_that_no_pruning_gives_are_refused(sizes, message):
    model = tiny.llama()
    own = us.compress.plan(model, importance=scores(model), ffn=8).target
    with pytest.raises(ValueError, match=message):
        us.compress.plan(model, replace(own, **sizes), importance=scores(model))
