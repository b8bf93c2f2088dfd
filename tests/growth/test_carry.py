"""Each capture of a model takes a second: the models have one layer, and tests share captures."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F

import unitscale as us
from growth import tiny
from unitscale.units.forward import session_of

ONE_LAYER = {"gpt2": {"n_layer": 1}} | {
    name: {"num_hidden_layers": 1} for name in ("llama", "bert", "vit")
}
WIDER = {"width": 24, "noise": 0.0}
GROWN = [
    ("gpt2", WIDER),
    ("llama", {**WIDER, "heads": 8, "kv_heads": 2}),
    ("bert", WIDER),
    ("vit", WIDER),
]


def units_of(model):
    session = session_of(model)
    session.terms.collect()
    return dict(session.store.units)


def step(model, batch, *more):
    """A training step's forward and backward pass, with `more` losses of the model; its output."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    # Of GPT-2's own loss torch.compile makes a second graph, with a warning of torch's own.
    loss = F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())
    sum([other(model) for other in more], start=loss).backward()
    session_of(model).terms.collect()
    return logits.detach()


@functools.cache
def small_model(name, recipe="fp8"):
    """A model of one layer that made a step, its batch, and its output; nobody changes it."""
    model = tiny.MODELS[name](**ONE_LAYER[name])
    us.unit_scale(model, recipe)
    batch = tiny.batch_for(model)
    return model, batch, step(model, batch)


def measured(small, made, batch, recipe="fp8"):
    """The grown model, scaled and measured as if it were new."""
    plain = us.growth.apply(us.unscale(copy.deepcopy(small)), made)
    us.unit_scale(plain, recipe)
    return plain, step(plain, batch)


def has_no_gradient(name):
    """A bias of keys: softmax does not see it, so that its gradient is rounding alone."""
    return name.endswith(("key.bias", "k_proj.bias"))


@pytest.mark.parametrize(("name", "asked"), GROWN)
def test_units_that_grew_along_are_those_that_would_be_measured(name, asked):
    small, batch, output = small_model(name)
    made = us.growth.plan(small, **asked)
    carried = units_of(us.growth.apply(small, made))
    plain, grown_output = measured(small, made, batch)
    found = units_of(plain)
    assert carried.keys() == found.keys()
    assert len(carried) > 40
    assert not {n for n in carried if carried[n] != found[n] and not has_no_gradient(n)}
    # Powers of two: the codes are the same, so the outputs in FP8 differ by the order of sums.
    assert (output - grown_output).abs().max() <= 1e-5 * output.abs().max()


def test_the_recipe_is_in_force_from_the_first_call_and_nothing_is_measured(monkeypatch):
    small, batch, output = small_model("gpt2")
    monkeypatch.setattr(session_of(small).store, "step", 100)
    grown = us.growth.apply(small, us.growth.plan(small, **WIDER))
    before, session = units_of(grown), session_of(grown)
    assert session.store.step == 3
    found = step(grown, batch)
    assert units_of(grown) == before
    assert not session.terms.measured
    assert us.coverage(grown) == pytest.approx(us.coverage(small), abs=0.1)
    assert us.coverage(grown) > 0.5
    assert (output - found).abs().max() <= 1e-5 * output.abs().max()
    step(grown, batch)  # the schedule begins anew: geometric, at 4
    assert session.terms.measured
    assert session_of(small).store.step == 100


def test_new_layers_and_experts_get_the_units_of_their_source():
    small, batch, _ = small_model("llama")
    made = us.growth.plan(small, depth=2, experts=2)
    grown = us.growth.apply(small, made)
    own, found = units_of(small), units_of(grown)
    attention = [n for n in own if n.startswith("model.layers.0.self_attn.")]
    assert attention
    assert all(found[n.replace(".0.", ".1.")] == own[n] for n in attention)
    for layer in (0, 1):
        expert = f"model.layers.{layer}.mlp.experts.1.up_proj"
        assert found[f"{expert}.weight"].s == own["model.layers.0.mlp.up_proj.weight"].s
        assert found[f"{expert}.linear"].s == own["model.layers.0.mlp.up_proj.linear"].s
    step(grown, batch, us.growth.router_loss)
    after = units_of(grown)
    # Only what chooses and mixes is new.
    new = {n for n in after if n not in found}
    assert new
    assert all(".mlp." in n and ".experts." not in n for n in new)
    assert all(p.grad is not None for p in grown.parameters())
    assert any("router" in product.name for product in us.summary(grown).products)


@pytest.mark.slow  # two captures more, of a kind that units have
def test_amaxes_of_delayed_scales_grow_along():
    small, batch, _ = small_model("vit", "fp8-delayed")
    made = us.growth.plan(small, **WIDER)
    grown = us.growth.apply(small, made)
    plain, _ = measured(small, made, batch, "fp8-delayed")
    found, own = session_of(grown).store.amaxes, session_of(plain).store.amaxes
    found.settle()
    own.settle()
    assert found.known.keys() == own.known.keys()
    assert found.known
    for name, history in own.known.items():
        # Within a step of E5M2, which gradients have: they were rounded at other scales.
        assert found.known[name][0] == pytest.approx(history[0], rel=2**-2), name


def test_rules_that_name_layers_by_number_are_warned_of():
    small = tiny.gpt2()
    us.unit_scale(small, "fp8", skip=["transformer.h.1.mlp*"])
    made = us.growth.plan(small, depth=3)
    with pytest.warns(UserWarning, match="names layers by number"):
        us.growth.apply(small, made)


def test_a_schedule_of_ones_own_steps_goes_on():
    small = tiny.gpt2(n_layer=1)
    us.unit_scale(small, "fp8", remeasure=[0, 7])
    session_of(small).store.step = 5
    grown = us.growth.apply(small, us.growth.plan(small, ffn=96))
    assert session_of(grown).store.step == 5
    assert not session_of(grown).store.is_due()


def test_noise_and_not_growth_is_what_changes_outputs_under_a_recipe():
    """Doubled without noise, weights are halved: the same codes. Noise makes other ones.

    Two roundings of one function differ by at most the error of both: twice the small model's, and
    half of that more, since the largest of other elements is taken.
    """
    small, batch, _ = small_model("llama")
    small = copy.deepcopy(small)
    with torch.no_grad():
        rounded = small(**batch).logits
        with us.full_precision(small):
            exact = small(**batch).logits
    own = ((rounded - exact).abs().max() / exact.abs().max()).item()
    parts = {}
    for noise in (0.0, 0.02):
        made = us.growth.plan(small, width=24, heads=8, kv_heads=2, noise=noise)
        proof = us.growth.verify(small, us.growth.apply(small, made), batch)
        assert proof.preserved
        parts[noise] = proof.in_recipe / proof.largest
        assert "under the recipe by" in str(proof)
        assert "noise" in str(proof)
    assert parts[0.0] <= 1e-5
    assert own / 10 < parts[0.02] < 3 * own


def test_the_summary_of_a_grown_or_pruned_model_counts_its_own_steps_and_all_units():
    small, batch, _ = small_model("llama")
    grown = us.growth.apply(small, us.growth.plan(small, width=24, noise=0.0))
    pruned = us.compress.apply(
        small, us.compress.plan(small, importance=us.compress.drawn(small, 0), ffn=10)
    )
    for model in (grown, pruned):
        before = us.summary(model)
        assert before.steps == 0
        assert before.units >= 40
        first, second, *_ = str(before).splitlines()
        assert "multiply-adds" not in first
        assert second == "  nothing has run yet: call the model first"
        step(model, batch)
        after = us.summary(model)
        assert (after.steps, after.coverage) == (1, 1.0)
        rows = us.unit_rows(model)
        assert 0 < after.units == sum(row.reason is None for row in rows) <= len(rows)
    again = us.growth.apply(grown, us.growth.plan(grown, width=48, noise=0.0))
    assert us.summary(again).steps == 0
    state = session_of(again).store.state_dict()
    with pytest.raises(ValueError, match="'began' is 99; expected a whole number up to the step"):
        session_of(again).store.load_state_dict({**state, "began": 99})


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_block_that_adds_nothing_at_first_learns_from_its_first_steps(name):
    """Its zero matrices had the unit of their source: FP8 flushed what the first step made."""
    small, batch, _ = small_model(name)
    grown = us.growth.apply(small, us.growth.plan(small, depth=2, noise=0.0))
    before, store = units_of(grown), session_of(grown).store
    zeros = [
        n
        for n, p in grown.named_parameters()
        if ".1." in n and n.endswith("weight") and not p.any()
    ]
    assert {part for part, tensor in store.zero if ".1." in tensor} == {"s", "phi"}
    optimizer = torch.optim.AdamW(grown.parameters(), 1e-4)
    for _ in range(2):  # a warning of what went to zero is an error here
        optimizer.zero_grad()
        step(grown, batch)
        optimizer.step()
    assert len(zeros) == 2
    for matrix in zeros:
        assert store.units[matrix].s < before[matrix].s - 5
        assert store.readings[matrix].flushed < 0.05
    lost = {n: r.losses for n, r in store.readings.items() if r.losses}
    assert not lost
