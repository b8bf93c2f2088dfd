"""What is kept matters: the order of rankings, of students, and of shapes, on a trained model."""

import functools

import pytest
import torch

import unitscale as us
from compress import trained
from unitscale.compress.search import mean_loss

STEPS = 40
SEEDS = (0, 1, 2)
CUTS = {"half the MLP": {"ffn": 32}, "width too": {"width": 24, "ffn": 32, "heads": 3}}
VALID = tuple(trained.batches(99, 4))


@functools.cache
def scores():
    return us.compress.measure(trained.teacher(), trained.batches(2, 8))


def pruned(importance, **asked):
    model = trained.teacher()
    if "heads" in asked:
        asked = {**asked, "kv_heads": asked["heads"]}
    made = us.compress.plan(model, importance=importance, **asked)
    return made, us.compress.apply(model, made)


def distilled(importance, **asked):
    made, student = pruned(importance, **asked)
    against = us.compress.Distillation(trained.teacher(), student, made)
    trained.train(student, against, trained.batches(3, STEPS), 3e-3)
    return mean_loss(student, VALID)


@pytest.mark.parametrize("cut", CUTS)
def test_importance_costs_less_than_chance_and_the_reverse_more(cut):
    best = mean_loss(pruned(scores(), **CUTS[cut])[1], VALID)
    worst = mean_loss(pruned(scores().reversed(), **CUTS[cut])[1], VALID)
    chance = [
        mean_loss(pruned(us.compress.drawn(trained.teacher(), seed), **CUTS[cut])[1], VALID)
        for seed in SEEDS
    ]
    mean = sum(chance) / len(chance)
    assert best < mean < worst


def test_a_pruned_student_beats_the_same_shape_from_scratch():
    asked = CUTS["width too"]
    made, student = pruned(scores(), **asked)
    found = distilled(scores(), **asked)
    torch.manual_seed(5)
    scratch = type(student)(student.config)
    trained.train(scratch, lambda batch: scratch(**batch).loss, trained.batches(3, STEPS), 3e-3)
    assert found <= mean_loss(scratch, VALID) - 0.3
    assert made.parameters[1] == sum(p.numel() for p in scratch.parameters())


def test_shapes_are_ranked_by_what_they_lose_after_a_short_training():
    model = trained.teacher()
    own = sum(p.numel() for p in model.parameters())
    shapes = us.compress.candidates(model, own * 6 // 10)
    chosen = [shapes[0], shapes[-1]]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = us.compress.search(
        model, chosen, importance=scores(), train=lambda: trained.batches(3, 15), valid=VALID
    )
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    assert {one.plan.target for one in found} == set(chosen)
    assert all(one.loss < one.pruned_loss for one in found)
    assert all(abs(one.parameters / own - 0.6) <= 0.05 * 0.6 for one in found)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert "parameters, loss" in str(found[0])


def test_bad_input_is_one_line():
    model = trained.teacher()
    shape = us.compress.candidates(model, 10_000, tolerance=0.2)[:1]
    more = {"importance": scores(), "train": list}
    with pytest.raises(ValueError, match="no shape to try"):
        us.compress.search(model, [], valid=VALID, **more)
    with pytest.raises(ValueError, match="no batch to rank by"):
        us.compress.search(model, shape, valid=[], **more)
    with pytest.raises(ValueError, match="batches need labels"):
        us.compress.search(model, shape, valid=[{"input_ids": VALID[0]["input_ids"]}], **more)
