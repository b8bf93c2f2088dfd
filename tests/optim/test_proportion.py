"""Schedulers keep the factors of the groups, or the next step says that they did not."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from unitscale import nn as unn
from unitscale import optim
from unitscale.optim.proportion import out_of_proportion

LOST = "learning rates are not in proportion to the groups' lr_factor any more"


def small_model():
    return nn.Sequential(unn.Linear(16, 16), unn.LayerNorm(16), unn.LinearReadout(16, 4))


def steps(optimizer, schedule, count, *arguments):
    for _ in range(count):
        optimizer.step()
        schedule.step(*arguments)


def rates(optimizer):
    return [group["lr"] / group["lr_factor"] for group in optimizer.param_groups]


OVERWRITE = {
    "OneCycleLR": lambda o: (OneCycleLR(o, max_lr=0.1, total_steps=20), ()),
    "ReduceLROnPlateau": lambda o: (ReduceLROnPlateau(o, patience=0, min_lr=0.05), (1.0,)),
    "CosineAnnealingLR": lambda o: (CosineAnnealingLR(o, 20, eta_min=0.01), ()),
}


@pytest.mark.parametrize("make", OVERWRITE.values(), ids=OVERWRITE)
@pytest.mark.parametrize("kind", [optim.AdamW, optim.Adam, optim.SGD])
def test_a_scheduler_that_erases_the_factors_is_told_once(make, kind):
    optimizer = kind(small_model(), lr=0.1)
    schedule, arguments = make(optimizer)
    with pytest.warns(UserWarning, match=LOST) as seen:
        steps(optimizer, schedule, 10, *arguments)
    assert sum(LOST in str(warning.message) for warning in seen) == 1
    assert "max_lr=[x * g['lr_factor'] for g in optimizer.param_groups]" in str(seen[0].message)


def test_one_number_per_group_keeps_them():
    optimizer = optim.AdamW(small_model(), lr=0.1)
    factors = [group["lr_factor"] for group in optimizer.param_groups]
    cycle = OneCycleLR(optimizer, max_lr=[0.1 * f for f in factors], total_steps=20)
    steps(optimizer, cycle, 15)
    assert rates(optimizer) == pytest.approx([rates(optimizer)[0]] * len(factors), rel=1e-9)
    optimizer = optim.AdamW(small_model(), lr=0.1)
    bounds = [0.05 * f for f in factors]
    steps(optimizer, ReduceLROnPlateau(optimizer, patience=0, min_lr=bounds), 15, 1.0)
    assert rates(optimizer) == pytest.approx([0.05] * len(factors), rel=1e-9)


def test_schedules_that_multiply_say_nothing():
    for make in (
        lambda o: ExponentialLR(o, 0.9),
        lambda o: LambdaLR(o, lambda step: 1 / (step + 1)),
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: SequentialLR(o, [LinearLR(o, 0.01, total_iters=5), ExponentialLR(o, 0.5)], [5]),
    ):
        optimizer = optim.AdamW(small_model(), lr=0.1)
        steps(optimizer, make(optimizer), 12)  # a warning is an error here; at 10 the rate is 0


def test_rates_that_are_meant_are_said_so():
    optimizer = optim.AdamW(small_model(), lr=0.1)
    group = optimizer.param_groups[0]
    group["lr"] *= 3
    assert LOST in out_of_proportion(optimizer.param_groups)
    group["lr_factor"] *= 3
    assert out_of_proportion(optimizer.param_groups) is None
    optimizer.step()


def test_what_cannot_be_known_is_not_claimed():
    groups = [{"lr": 1.0, "lr_factor": 1.0}, {"lr": 1.0, "lr_factor": 0.5}]
    assert LOST in out_of_proportion(groups)
    for group in ({"lr": 1.0}, {"lr": torch.tensor(1.0), "lr_factor": 1.0}):
        assert out_of_proportion([*groups, group]) is None
    still = [{"lr": 1.0, "lr_factor": 1.0}, {"lr": 0.0, "lr_factor": 0.0}]
    assert out_of_proportion(still) is None
    assert out_of_proportion([{"lr": 0.0, "lr_factor": f} for f in (1.0, 0.5)]) is None


def test_a_step_is_still_torchs_and_survives_copies():
    model = small_model()
    optimizer = optim.AdamW(model, lr=0.1)
    other = copy.deepcopy(optimizer)
    assert other.state_dict() == optimizer.state_dict()
    other.step()
    compiled = torch.compile(optimizer.step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = model[0].weight.detach().clone()
        compiled()
    assert not torch.equal(before, model[0].weight)
