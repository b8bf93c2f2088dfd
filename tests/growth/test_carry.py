import copy

import pytest
import torch

import unitscale as us
from growth import tiny
from unitscale.units.forward import session_of

ONE_LAYER = {"gpt2": {"n_layer": 1}} | {
    name: {"num_hidden_layers": 1} for name in ("llama", "bert", "vit")
}
GROWN = [
    ("gpt2", {"width": 24, "noise": 0.0}),
    ("llama", {"width": 24, "noise": 0.0}),
    ("llama", {"heads": 8, "noise": 0.0}),
    ("bert", {"width": 24, "noise": 0.0}),
    ("vit", {"width": 24, "noise": 0.0}),
]


def units_of(model):
    session = session_of(model)
    session.terms.collect()
    return dict(session.store.units)


def step(model, batch):
    model(**batch).loss.backward()
    session_of(model).terms.collect()


def stepped(model, batch, recipe="fp8"):
    us.unit_scale(model, recipe)
    step(model, batch)
    return model


def has_no_gradient(name):
    """A bias of keys: softmax does not see it, so that its gradient is rounding alone."""
    return name.endswith(("key.bias", "k_proj.bias"))


@pytest.mark.parametrize(("name", "asked"), GROWN)
def test_units_that_grew_along_are_those_that_would_be_measured(name, asked):
    small = tiny.MODELS[name](**ONE_LAYER[name])
    batch = tiny.batch_for(small)
    stepped(small, batch)
    made = us.growth.plan(small, **asked)
    grown = us.growth.apply(small, made)
    carried = units_of(grown)
    plain = us.growth.apply(us.unscale(copy.deepcopy(small)), made)
    measured = units_of(stepped(plain, batch))
    assert carried.keys() == measured.keys()
    assert len(carried) > 40
    differing = {n for n in carried if carried[n] != measured[n] and not has_no_gradient(n)}
    assert not differing
    # Powers of two: the codes are the same ones, and so are the outputs under the recipe, but for
    # the order of sums.
    proof = us.growth.verify(small, grown, batch)
    assert proof.preserved
    assert proof.in_recipe is not None
    assert proof.in_recipe <= 1e-5 * proof.largest


def test_the_recipe_is_in_force_from_the_first_call_and_nothing_is_measured():
    small = tiny.gpt2(n_layer=1)
    batch = tiny.batch_for(small)
    stepped(small, batch)
    for _ in range(4):
        step(small, batch)
    grown = us.growth.apply(small, us.growth.plan(small, width=24, noise=0.0))
    before, session = units_of(grown), session_of(grown)
    assert session.store.step == 3
    step(grown, batch)
    assert units_of(grown) == before
    assert not session.terms.measured
    assert us.coverage(grown) == us.coverage(small) > 0.5
    step(grown, batch)  # the schedule begins anew: geometric, at 4
    assert session.terms.measured
    assert units_of(small).keys() == before.keys()


def test_new_layers_get_the_units_of_their_source():
    small = tiny.llama(num_hidden_layers=1)
    batch = tiny.batch_for(small)
    stepped(small, batch)
    grown = us.growth.apply(small, us.growth.plan(small, depth=2))
    own, found = units_of(small), units_of(grown)
    inner = {n.removeprefix("model.layers.0.") for n in own if n.startswith("model.layers.0.")}
    assert inner
    assert all(found[f"model.layers.1.{n}"] == own[f"model.layers.0.{n}"] for n in inner)
    proof = us.growth.verify(small, grown, batch)
    assert proof.in_recipe == 0.0
    step(grown, batch)
    assert units_of(grown).keys() == found.keys()


def test_amaxes_of_delayed_scales_grow_along():
    small = tiny.llama(num_hidden_layers=1)
    batch = tiny.batch_for(small)
    stepped(small, batch, "fp8-delayed")
    step(small, batch)
    made = us.growth.plan(small, width=24, noise=0.0)
    grown = us.growth.apply(small, made)
    plain = us.growth.apply(us.unscale(copy.deepcopy(small)), made)
    stepped(plain, batch, "fp8-delayed")
    found, own = session_of(grown).store.amaxes, session_of(plain).store.amaxes
    own.settle()
    assert found.known.keys() == own.known.keys()
    assert found.known
    for name, history in own.known.items():
        assert found.known[name][0] == pytest.approx(history[0], rel=2**-3), name  # E4M3's step


def test_a_mixture_runs_at_the_units_of_its_mlp():
    small = tiny.gpt2(n_layer=1)
    batch = tiny.batch_for(small)
    stepped(small, batch)
    grown = us.growth.apply(small, us.growth.plan(small, experts=3))
    own, found = units_of(small), units_of(grown)
    start, mlp = "transformer.h.0.mlp.", "transformer.h.0.mlp.experts.2."
    weight = "c_fc.weight"
    assert found[mlp + weight].s == own[start + weight].s
    assert us.growth.verify(small, grown, batch).preserved
    loss = grown(**batch).loss + us.growth.router_loss(grown)
    loss.backward()
    router = grown.transformer.h[0].mlp.router.weight
    assert router.grad.abs().max() > 0
    text = str(us.summary(grown))
    assert "experts" in text
    assert all(p.grad is not None for p in grown.parameters())


def test_rules_that_name_layers_by_number_are_warned_of():
    small = tiny.gpt2()
    us.unit_scale(small, "fp8", skip=["transformer.h.1.mlp*"])
    made = us.growth.plan(small, depth=3)
    with pytest.warns(UserWarning, match="names layers by number"):
        us.growth.apply(small, made)


def test_a_schedule_of_ones_own_steps_goes_on():
    small = tiny.gpt2(n_layer=1)
    us.unit_scale(small, "fp8", remeasure=[0, 7])
    batch = tiny.batch_for(small)
    for _ in range(5):
        step(small, batch)
    grown = us.growth.apply(small, us.growth.plan(small, ffn=96))
    assert session_of(grown).store.step == 5
    assert torch.isfinite(grown(**batch).loss)
