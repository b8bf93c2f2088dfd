"""Slices that compute what the model does without what was cut, and units that come along."""

import copy

import pytest
import torch
import torch.nn.functional as F

import unitscale as us
from growth import tiny
from unitscale.units.forward import session_of

FP32 = 2.0**-24
ROUNDINGS = 32
"""See tests/growth/test_apply.py: two layers of sums in another order."""


def logits(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def cut(model, **asked):
    made = us.compress.plan(model, importance=us.compress.drawn(model, 3), **asked)
    return made, us.compress.apply(model, made)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_keeping_everything_gives_the_same_bits(name):
    model = tiny.MODELS[name]()
    batch = tiny.batch_for(model)
    before = copy.deepcopy(model.state_dict())
    _, pruned = cut(model, depth=2)
    assert logits(pruned, batch).equal(logits(model, batch))
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(a is not b for a, b in zip(model.parameters(), pruned.parameters(), strict=True))


@torch.no_grad()
def masked(model, made):
    """The large model with zeros where a plan cuts heads and neurons."""
    found = copy.deepcopy(model)
    dim = made.old.head_dim
    for layer in range(made.old.depth):
        attention, mlp = (
            found.get_submodule(star.replace("*", str(layer))) for star in made.known.ends
        )
        heads = {h * dim + i for h in made.heads[layer] for i in range(dim)}
        for module, kept in ((attention, heads), (mlp, set(made.neurons[layer]))):
            is_transposed = type(module).__name__ == "Conv1D"
            columns = module.weight if is_transposed else module.weight.T
            gone = [i for i in range(len(columns)) if i not in kept]
            columns[gone] = 0
    return found


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("llama", {"heads": 2, "kv_heads": 2, "ffn": 11}),
        ("llama", {"kv_heads": 1}),
        ("gpt2", {"ffn": 17}),
        ("bert", {"ffn": 9}),
        ("vit", {"ffn": 9}),
    ],
)
def test_a_pruned_model_is_the_large_one_with_what_was_cut_set_to_zero(name, asked):
    model = tiny.MODELS[name]()
    batch = tiny.batch_for(model)
    made, pruned = cut(model, **asked)
    expected = logits(masked(model, made), batch)
    difference = (logits(pruned, batch) - expected).abs().max().item()
    assert difference <= ROUNDINGS * FP32 * max(1.0, expected.abs().max().item())
    # The negative: it is not the large model's function.
    assert (expected - logits(model, batch)).abs().max() > 1e-2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_width_and_depth_are_cut_and_the_folder_loads(name, tied, tmp_path):
    more = {} if name == "vit" else {"tie_word_embeddings": tied}
    model = tiny.MODELS[name](**more)
    made, pruned = cut(model, width=6 if name != "llama" else 8, depth=1)
    assert type(pruned) is type(model)
    out = logits(pruned, tiny.batch_for(model))
    assert out.isfinite().all()
    pruned.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert logits(again, tiny.batch_for(model)).equal(out)
    gain = made.known.last_norm + ".weight"
    kept = model.get_parameter(gain)[list(made.channels)]
    assert pruned.get_parameter(gain).equal(kept)


def test_a_plan_is_of_one_model_and_applied_once():
    model = tiny.llama()
    made, pruned = cut(model, ffn=9)
    with pytest.raises(ValueError, match="the plan was applied to it already: make a plan"):
        us.compress.apply(pruned, made)
    with pytest.raises(ValueError, match="GPT2LMHeadModel of another architecture"):
        us.compress.apply(tiny.gpt2(), made)


def step(model, batch):
    logits = model(input_ids=batch["input_ids"]).logits
    F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten()).backward()
    session_of(model).terms.collect()
    return logits.detach()


def test_a_pruned_model_runs_in_its_recipe_from_the_first_call_at_units_carried_over(monkeypatch):
    model = tiny.llama()
    batch = tiny.batch_for(model)
    us.unit_scale(model, "fp8")
    step(model, batch)
    monkeypatch.setattr(session_of(model).store, "step", 100)
    made, pruned = cut(model, ffn=9, depth=1)
    session = session_of(pruned)
    old, new = session_of(model).store.units, dict(session.store.units)
    source = f"model.layers.{made.layers[0]}."
    same = [n for n in old if n.startswith(source) and "." not in n.removeprefix(source)]
    assert all(new[n.replace(source, "model.layers.0.")] == old[n] for n in same)
    assert len(new) > 40
    assert not any(name.startswith("model.layers.1.") for name in new)
    rounded = step(pruned, batch)
    assert session.store.units == new
    assert not session.terms.measured
    with us.full_precision(pruned):
        assert not rounded.equal(pruned(input_ids=batch["input_ids"]).logits)
    assert us.coverage(pruned) == us.coverage(model)
    step(pruned, batch)
    assert session.terms.measured  # the schedule begins anew
    assert session_of(model).store.step == 100


def test_the_unit_of_a_weight_follows_what_is_kept_of_it():
    model = tiny.llama(num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 4:] *= 64
    us.unit_scale(model, "fp8")
    step(model, tiny.batch_for(model))
    scores = us.compress.drawn(model)
    neurons = -torch.arange(20.0, dtype=torch.float64)[None]
    given = us.compress.Importance(
        heads=scores.heads, neurons=neurons, channels=scores.channels, layers=scores.layers
    )
    pruned = us.compress.apply(model, us.compress.plan(model, importance=given, ffn=4))
    name = "model.layers.0.mlp.down_proj.weight"
    found = [session_of(one).store.units[name].s for one in (model, pruned)]
    assert found[0] - found[1] in (5, 6)  # 64, of which most columns had it


@pytest.mark.parametrize("kind", ["torch", "own"])
def test_moments_of_what_stays_come_along(kind):
    model = tiny.gpt2()
    make = torch.optim.AdamW if kind == "torch" else us.optim.AdamW
    more = {} if kind == "torch" else {"rules": None}
    optimizer = make(model.parameters(), 1e-3, **more)
    model(**tiny.batch_for(model)).loss.backward()
    optimizer.step()
    made, pruned = cut(model, ffn=9, depth=1)
    new = make(pruned.parameters(), 1e-3, **more)
    us.compress.prune_optimizer(optimizer, new, model=model, pruned=pruned, plan=made)
    name = "transformer.h.0.mlp.c_fc.weight"
    origin = model.get_parameter(made.origin(name))
    own = optimizer.state[origin]["exp_avg"].reshape(origin.shape)
    found = new.state[pruned.get_parameter(name)]["exp_avg"]
    kept = own[:, list(made.neurons[0])]
    torch.testing.assert_close(found.reshape(kept.shape), kept)
    with pytest.raises(ValueError, match="has a state already"):
        us.compress.prune_optimizer(optimizer, new, model=model, pruned=pruned, plan=made)
    other = torch.optim.SGD(pruned.parameters(), 0.1)
    with pytest.raises(ValueError, match="compress: the optimizers are"):
        us.compress.prune_optimizer(optimizer, other, model=model, pruned=pruned, plan=made)


def test_a_report_counts_and_compares():
    model = tiny.llama()
    made, pruned = cut(model, ffn=9)
    batch = tiny.batch_for(model)
    report = us.compress.verify(model, pruned, batch)
    assert report.parameters == made.parameters
    assert report.bytes == tuple(4 * n for n in made.parameters)
    assert report.difference > 0
    assert report.loss is not None
    assert "loss" in str(report)
    same = us.compress.verify(model, copy.deepcopy(model), batch)
    assert same.difference == 0
    with pytest.raises(ValueError, match="expected finite ones of one shape"):
        us.compress.verify(model, tiny.llama(vocab_size=40), {"input_ids": batch["input_ids"]})


def test_rules_that_name_layers_by_number_are_warned_of():
    model = tiny.gpt2()
    us.unit_scale(model, "fp8", skip=["transformer.h.1.mlp*"])
    with pytest.warns(UserWarning, match=r"compress: .* names layers by number"):
        cut(model, depth=1)
    cut(model, ffn=9)  # the numbers are the same, so there is nothing to warn of
