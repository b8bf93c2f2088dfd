"""States load as they were saved, across codecs, from torch's own, or not at all."""

import io

import pytest
import torch
from torch import nn

from optim.state_cases import (
    BF16,
    CODED,
    FP32,
    PAIRS,
    adamw,
    assert_same_bits,
    copies,
    parameters,
    relative_error,
    run,
    snapshot,
)
from unitscale import optim


def trained(states, dtype, steps=3, **options):
    named = parameters(dtype)
    optimizer = adamw(named, states, **options)
    run(optimizer, named, range(steps))
    return named, optimizer


def through_a_file(state_dict):
    """As a checkpoint: only tensors and plain values are read back."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("states", "dtype"), PAIRS)
def test_ten_steps_after_a_checkpoint_are_the_same_in_every_bit(states, dtype):
    named, optimizer = trained(states, dtype, seed=4)
    again = copies(named)
    resumed = adamw(again, states, lr=123.0, seed=0)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_bits(snapshot(optimizer, named), snapshot(resumed, again))
    run(optimizer, named, range(3, 13))
    run(resumed, again, range(3, 13))
    assert_same_bits(snapshot(optimizer, named), snapshot(resumed, again))


@pytest.mark.parametrize(("states", "dtype"), [pair for pair in CODED if pair[1] != FP32])
def test_torchs_own_loading_would_spoil_the_codes(states, dtype):
    """Why `load_state_dict` is ours: all but `step` is cast to the dtype of the parameter."""
    named, optimizer = trained(states, dtype)
    again = copies(named)
    resumed = adamw(again, states)
    torch.optim.Optimizer.load_state_dict(resumed, optimizer.state_dict())
    with pytest.raises(AssertionError):
        assert_same_bits(snapshot(optimizer, named), snapshot(resumed, again))


ERRORS = {"fp32": 0.0, "fp8-lm": 0.028, "coat": 0.03, "bf16-stochastic": 0.0, "master24": 0.008}
"""At most, of a moment that goes through a codec once."""


@pytest.mark.parametrize("target", ERRORS)
@pytest.mark.parametrize("source", ERRORS)
def test_states_load_across_codecs(source, target):
    """BF16 parameters, which all states hold. A weight shows the same afterwards."""
    exact_named, exact = trained("fp32", BF16)
    named, optimizer = copies(exact_named), None
    optimizer = adamw(named, source)
    optimizer.load_state_dict(exact.state_dict())
    again = copies(named)
    loaded = adamw(again, target)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_bits([p for _, p in named], [p for _, p in again])
    assert {row.states for row in loaded.state_rows()} == {target}
    limit = ERRORS[source] + ERRORS[target]
    for (name, parameter), (_, first) in zip(again, exact_named, strict=True):
        assert float(loaded.state[parameter]["step"]) == 3
        if parameter.numel() == 0:
            continue
        for slot, codec in dict(loaded.held_of(use_of(loaded, name)).moments).items():
            found = decoded(loaded.state[parameter], slot, codec, parameter)
            assert relative_error(found, exact.state[first][slot].flatten()) <= limit, (name, slot)
    run(loaded, again, [3])


def use_of(optimizer, name):
    return next(use for use in optimizer.uses() if use.name == name)


def decoded(state, slot, codec, parameter):
    rows = parameter.shape[0] if parameter.shape else 1
    stored = [state[slot + field.suffix] for field in codec.fields]
    fields = zip(stored, codec.fields, strict=True)
    stored = [t.reshape(rows, -1) if f.layout != "tensor" else t for t, f in fields]
    return codec.decode(stored).flatten()


@pytest.mark.parametrize(
    ("source", "kept"), [("fp32", 1e-7), ("fp8-lm", 3e-4), ("master24", 3.1e-5)]
)
def test_a_master_lives_on_in_other_codecs(source, kept):
    """Weights of BF16 are known to 4e-3; after a change of codec, to what the worse one keeps."""
    named, optimizer = trained(source, BF16)
    matrix = named[0][1]
    held = optimizer.held_of(use_of(optimizer, "matrix"))
    before = held.weight.read(
        matrix.detach(), [optimizer.state[matrix][p.name] for p in places_of(held)]
    )
    assert relative_error(matrix.detach(), before) > 1e-3
    for target, worse in (("fp32", 1e-7), ("fp8-lm", 3e-4), ("master24", 3.1e-5)):
        again = copies(named)
        loaded = adamw(again, target)
        loaded.load_state_dict(optimizer.state_dict())
        held = loaded.held_of(use_of(loaded, "matrix"))
        stored = [loaded.state[again[0][1]][place.name] for place in places_of(held)]
        after = held.weight.read(again[0][1].detach(), stored)
        # A master in FP16 shows another BF16 at 1 of 30 weights; there the parameter counts.
        limit = max(kept, worse) if "fp8-lm" not in (source, target) else 1e-3
        assert relative_error(after, before) <= limit, target


def places_of(held):
    return [place for place in held.places() if place.name.startswith(held.weight.slot)]


@pytest.mark.parametrize(("states", "dtype"), [pair for pair in PAIRS if pair[1] != torch.float16])
def test_torchs_own_states_load(states, dtype):
    """Not of FP16, in which torch's eps of 1e-8 is zero and its step NaN."""
    named = parameters(dtype)
    theirs = torch.optim.AdamW(named, lr=0.5, betas=(0.7, 0.8))
    run(theirs, named, range(3))
    again = copies(named)
    ours = adamw(again, states)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    group = ours.param_groups[0]
    assert (group["lr"], group["betas"], group["states"]) == (0.5, (0.7, 0.8), states)
    assert all(float(ours.state[p]["step"]) == 3 for _, p in again)
    run(ours, again, [3])
    run(theirs, named, [3])
    moved = [relative_error(a, b) for (_, a), (_, b) in zip(again, named, strict=True) if a.numel()]
    assert max(moved) < 0.15


def test_torchs_own_states_in_float32_go_on_to_the_bit():
    for kind, options in (("AdamW", {}), ("Adam", {}), ("SGD", {"momentum": 0.9})):
        named = parameters()
        theirs = getattr(torch.optim, kind)(named, lr=0.1, foreach=False, **options)
        run(theirs, named, range(3))
        again = copies(named)
        ours = getattr(optim, kind)(again, 1.0, rules=None, states="fp32", **options)
        ours.load_state_dict(theirs.state_dict())
        run(ours, again, range(3, 6))
        run(theirs, named, range(3, 6))
        assert_same_bits([p for _, p in named], [p for _, p in again])
        back = copies(again)
        third = getattr(torch.optim, kind)(back, lr=0.1, foreach=False, **options)
        third.load_state_dict(ours.state_dict())
        run(third, back, [6])
        run(theirs, named, [6])
        assert_same_bits([p for _, p in named], [p for _, p in back])


def broken(state_dict, change):
    """A copy with the state of the first parameter changed."""
    state = {key: dict(value) for key, value in state_dict["state"].items()}
    change(state[0])
    return {**state_dict, "state": state}


def smaller(state):
    state["exp_avg"] = state["exp_avg"][:-1]


def other_blocks(state):
    state["exp_avg_k"] = state["exp_avg_k"][:, :1]


def cast(state):
    state["exp_avg"] = state["exp_avg"].float()


def fewer(state):
    del state["exp_avg_sq"], state["exp_avg_sq_amax"], state["exp_avg_sq_k"]


def more(state):
    state["velocity"] = torch.ones(9, 130)


def listed(state):
    state["exp_avg"] = state["exp_avg"].tolist()


def lost(state):
    del state["exp_avg_k"]


def uncounted(state):
    del state["step"]


def undefined(state):
    state["step"] = torch.tensor(torch.nan)


def worded(state):
    state["step"] = "3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (undefined, r"step is tensor\(nan\); expected a finite number of at least 0"),
        (worded, r"step is '3'; expected a finite number"),
        (smaller, r"parameter 'matrix': exp_avg has shape \(8, 130\); expected \(9, 130\); load"),
        (other_blocks, r"exp_avg_k has shape \(9, 1\); expected \(9, 2\)"),
        (cast, r"exp_avg is torch.float32, but was saved as torch.uint8; something cast"),
        (fewer, r"the state has no exp_avg_sq but exp_avg, .*; expected that of AdamW"),
        (more, r"the state holds velocity, which these states do not"),
        (listed, r"exp_avg is a list; expected a tensor"),
        (lost, r"exp_avg is torch.uint8 without the fields that decode it; load the whole state"),
        (uncounted, r"the state has no step; load that of an Adam or AdamW"),
    ],
)
def test_a_wrong_state_is_one_clear_error_and_changes_nothing(change, message):
    _, source = trained("coat", FP32)
    named, optimizer = trained("coat", FP32, lr=7.0, steps=1)
    before, groups = snapshot(optimizer, named), dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match=r"^AdamW\.load_state_dict: .*" + message) as caught:
        optimizer.load_state_dict(broken(source.state_dict(), change))
    assert "\n" not in str(caught.value)
    assert_same_bits(before, snapshot(optimizer, named))
    assert optimizer.param_groups[0] == groups
    run(optimizer, named, [1])  # and no hook is left over
    optimizer.load_state_dict(source.state_dict())


def test_wrong_groups_are_one_clear_error_and_change_nothing():
    named, optimizer = trained("coat", FP32)
    before = snapshot(optimizer, named)
    good = optimizer.state_dict()
    group = good["param_groups"][0]
    for changed, message in (
        ([{**group, "params": group["params"][:-1]}], r"groups hold \[10\] .* expected \[11\]"),
        ([{**group, "states": "int3"}], r"states are 'int3', version 1; expected one of fp32"),
        ([{**group, "states_version": 99}], r"version 99; .* a later unitscale reads them"),
        ([{**group, "amsgrad": True}], r"amsgrad=True, which optimizers with states= do not"),
        ([{**group, "lr": "0.1"}], r"lr of a group is '0.1'; expected a finite number of at least"),
        ([{**group, "lr": torch.tensor(torch.nan)}], r"lr of a group is tensor\(nan\); expected"),
        ([{**group, "betas": (0.9, 1.0)}], r"betas of a group is \(0.9, 1.0\); expected two"),
        ([{**group, "eps": -1.0}], r"eps of a group is -1.0; expected a finite number"),
        ([{**group, "seed": "7"}], r"seed of a group is '7'; expected an int from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict({**good, "param_groups": changed})
    assert_same_bits(before, snapshot(optimizer, named))


def test_other_optimizers_states_are_refused():
    named = parameters()
    theirs = torch.optim.SGD(named, lr=0.1, momentum=0.9)
    run(theirs, named, [0])
    ours = adamw(copies(named), "coat")
    with pytest.raises(ValueError, match=r"no exp_avg but momentum_buffer; expected that of AdamW"):
        ours.load_state_dict(theirs.state_dict())


def test_users_hooks_see_what_is_loaded():
    _, source = trained("coat", FP32)
    named = parameters()
    optimizer = adamw(named, "coat")
    seen = []

    def rename(_, state_dict):
        seen.append("before")
        return {**state_dict, "state": state_dict["renamed"]}

    optimizer.register_load_state_dict_pre_hook(rename)
    optimizer.register_load_state_dict_post_hook(
        lambda one: seen.append(float(one.state[named[0][1]]["step"]))
    )
    saved = source.state_dict()
    saved["renamed"] = saved.pop("state")
    optimizer.load_state_dict(saved)
    assert seen == ["before", 3.0]


def test_parameters_without_a_state_have_none_after_loading():
    frozen, used = nn.Parameter(torch.randn(4, 300)), nn.Parameter(torch.randn(4, 300))
    optimizer = adamw([frozen, used], "coat")
    used.grad = torch.ones_like(used)
    optimizer.step()
    again = adamw([nn.Parameter(torch.randn(4, 300)) for _ in range(2)], "coat")
    again.load_state_dict(optimizer.state_dict())
    assert len(again.state) == 1
