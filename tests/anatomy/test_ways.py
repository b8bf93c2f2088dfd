"""A model as people have it: compiled in place, copied, pickled, of few bits, tied, frozen.

Each is grown and pruned like the plain model, to the bit where its weights are the same.
"""

import copy
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import unitscale as us
from growth import tiny
from unitscale.units.forward import session_of


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_by_layers(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def scaled(model):
    return us.unit_scale(model, "fp8")


def scaled_copy(model):
    return copy.deepcopy(us.unit_scale(model, "fp8"))


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def pickled_scaled(model):
    with pytest.warns(UserWarning, match="pickle"):
        return pickle.loads(pickle.dumps(us.unit_scale(model, "fp8")))


def in_training(model):
    return model.train()


def in_evaluation(model):
    return model.eval()


def partly_in_evaluation(model):
    model.model.layers[0].eval()
    return model


def frozen(model):
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    return model


SAME_WEIGHTS = [
    compiled_in_place,
    compiled_by_layers,
    scaled,
    scaled_copy,
    pickled,
    pickled_scaled,
    in_training,
    in_evaluation,
    partly_in_evaluation,
    frozen,
]


def changed(model, importance):
    """The grown and the pruned model."""
    grown = us.growth.apply(model, us.growth.plan(model, width=24, depth=3))
    made = us.compress.plan(model, importance=importance, ffn=8, depth=1)
    return grown, us.compress.apply(model, made)


def assert_same_parameters(one, other):
    found, expected = dict(one.named_parameters()), dict(other.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].equal(value), name


def test_assert_same_parameters_fails_for_other_values_dtypes_and_names():
    plain = nn.Linear(2, 2)
    for other in (nn.Linear(2, 2), copy.deepcopy(plain).double(), nn.Sequential(plain)):
        with pytest.raises(AssertionError):
            assert_same_parameters(other, plain)


@pytest.mark.parametrize("way", SAME_WEIGHTS, ids=lambda way: way.__name__)
def test_growth_and_pruning_are_those_of_the_plain_model(way):
    plain = tiny.llama()
    importance = us.compress.magnitude(plain)
    expected = changed(copy.deepcopy(plain), importance)
    model = way(copy.deepcopy(plain))
    for found, wanted in zip(changed(model, importance), expected, strict=True):
        assert type(found) is type(plain)
        assert_same_parameters(found, wanted)
        assert found.training == model.training
        session, own = session_of(found), session_of(model)
        assert (session is None) == (own is None)
        assert session is None or session.recipe.name == "fp8"
        is_frozen = [not p.requires_grad for p in found.parameters()]
        assert any(is_frozen) == (way is frozen)
    assert_same_parameters(model, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_weights_of_few_bits_stay_so(name, dtype):
    model = tiny.MODELS[name]().to(dtype)
    batch = {key: x.to(dtype) if x.is_floating_point() else x for key, x in batch_of(model)}
    importance = us.compress.measure(model, [batch])
    grown = us.growth.apply(model, us.growth.plan(model, width=24))
    pruned = us.compress.apply(model, us.compress.plan(model, importance=importance, ffn=8))
    assert us.growth.verify(model, grown, batch).preserved
    assert us.compress.verify(model, pruned, batch).difference > 0
    for found in (grown, pruned):
        assert {p.dtype for p in found.parameters()} == {dtype}


def batch_of(model):
    return tiny.batch_for(model).items()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_read_out_that_was_tied_or_untied_by_hand_stays_so(name, is_tied, tmp_path):
    model = tiny.MODELS[name](tie_word_embeddings=not is_tied)
    table = model.get_input_embeddings().weight
    drawn = torch.randn(table.shape, generator=torch.Generator().manual_seed(3))
    model.lm_head.weight = table if is_tied else nn.Parameter(drawn / 4)
    batch = tiny.batch_for(model)
    grown = us.growth.apply(model, us.growth.plan(model, width=24, noise=0.0))
    assert us.growth.verify(model, grown, batch).preserved
    made = us.compress.plan(model, importance=us.compress.drawn(model), ffn=8)
    pruned = us.compress.apply(model, made)
    assert pruned.lm_head.weight.equal(model.lm_head.weight)
    assert pruned.get_input_embeddings().weight.equal(table)
    grown.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for found in (grown, pruned, again):
        assert (found.lm_head.weight is found.get_input_embeddings().weight) == is_tied
    assert us.growth.verify(model, again, batch).preserved


def test_a_read_out_that_is_tied_in_part_is_refused():
    model = tiny.bert(tie_word_embeddings=True)
    weight = model.cls.predictions.decoder.weight
    model.cls.predictions.decoder.weight = nn.Parameter(weight.detach().clone())
    with pytest.raises(ValueError, match=r"'cls.predictions.decoder.bias' is not a weight of its"):
        us.growth.apply(model, us.growth.plan(model, width=24))


def test_importance_of_a_compiled_model_is_that_of_the_plain_one():
    model = tiny.llama(num_hidden_layers=1).eval()
    batch = {"input_ids": tiny.batch_for(model)["input_ids"]}
    expected = us.compress.measure(model, [batch])
    model.compile(backend="eager")
    with torch.no_grad():
        model(**batch)  # a graph without the hooks of measure
    found = us.compress.measure(model, [batch])
    for name in ("heads", "neurons", "channels", "layers"):
        assert getattr(found, name).equal(getattr(expected, name)), name


def test_optimizers_of_compiled_models_are_carried_over():
    small = tiny.gpt2()
    made = us.growth.plan(small, width=24)
    grown = us.growth.apply(small, made)
    old = torch.optim.AdamW(small.parameters())
    small(**tiny.batch_for(small)).loss.backward()
    old.step()
    states = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        new = torch.optim.AdamW(grown.parameters())
        us.growth.grow_optimizer(old, new, small=wrap(small), grown=wrap(grown), plan=made)
        states.append([state["exp_avg"] for state in new.state.values()])
    assert states[0]
    assert all(a.equal(b) for a, b in zip(*states, strict=True))


def test_a_compiled_model_is_verified_without_its_recipe():
    small = us.unit_scale(tiny.gpt2(), "fp8")
    grown = us.growth.apply(small, us.growth.plan(small, width=24, noise=0.0))
    with us.full_precision(small), us.full_precision(grown):
        wrapped = [torch.compile(model, backend="eager") for model in (small, grown)]
        assert us.growth.verify(*wrapped, tiny.batch_for(small)).preserved


def test_plans_and_importance_can_be_pickled():
    model = tiny.llama()
    importance = us.compress.magnitude(model)
    plans = us.growth.plan(model, width=24), us.compress.plan(model, importance=importance, ffn=8)
    grown, pruned = pickle.loads(pickle.dumps(plans))
    assert (grown, pruned) == plans
    assert_same_parameters(us.growth.apply(model, grown), us.growth.apply(model, plans[0]))
    again = pickle.loads(pickle.dumps(importance))
    assert us.compress.plan(model, importance=again, ffn=8) == pruned


@pytest.mark.slow
def test_a_model_and_its_plan_are_applied_in_another_process(tmp_path):
    model = tiny.llama()
    made = us.growth.plan(model, width=24)
    (tmp_path / "in.pickle").write_bytes(pickle.dumps((model, made)))
    code = """
        import pickle, sys, pathlib
        import unitscale as us
        folder = pathlib.Path(sys.argv[1])
        grown = us.growth.apply(*pickle.loads((folder / "in.pickle").read_bytes()))
        (folder / "out.pickle").write_bytes(pickle.dumps(grown))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)
    grown = pickle.loads((tmp_path / "out.pickle").read_bytes())
    assert_same_parameters(grown, us.growth.apply(model, made))
