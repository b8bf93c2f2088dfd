import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unitscale import optim

OPTIMIZERS = [
    pytest.param(optim.AdamW, torch.optim.AdamW, {"weight_decay": 0.01}, id="AdamW"),
    pytest.param(optim.Adam, torch.optim.Adam, {}, id="Adam"),
    pytest.param(optim.SGD, torch.optim.SGD, {"momentum": 0.9}, id="SGD"),
]


class Hidden(nn.Module):
    """A unit-scaled linear layer: unit weights, and a product divided by sqrt(fan_in)."""

    parameter_kinds = {"weight": "hidden"}  # noqa: RUF012 - as plain as a module's declaration is

    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in))

    def forward(self, x):
        return F.linear(x, self.weight) * self.weight.shape[1] ** -0.5


def two_layers(width=16):
    torch.manual_seed(0)
    return nn.Sequential(Hidden(4, width), nn.Tanh(), Hidden(width, 1))


def train(model, optimizer, steps, schedule=None):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    y = x.prod(dim=1, keepdim=True).tanh()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return losses


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_bit_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_assert_bit_equal_sees_one_bit():
    one = torch.ones(3)
    with pytest.raises(AssertionError):
        assert_bit_equal([one], [torch.nextafter(one, 2 * one)])


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_step_equals_torch_on_the_same_groups(ours, theirs, options):
    model, twin, again = two_layers(), two_layers(), two_layers()
    optimizer = ours(model, 0.05, **options)
    groups = optim.param_groups(
        twin, 0.05, weight_decay=options.get("weight_decay", 0.0), optimizer=ours.__name__.lower()
    )
    torch_optimizer = theirs(groups, lr=0.05, **{"weight_decay": 0.0, **options})
    train(model, optimizer, 20)
    train(twin, torch_optimizer, 20)
    train(again, ours(again, 0.05, **options), 20)
    assert_bit_equal(parameters(model), parameters(twin))
    assert_bit_equal(parameters(model), parameters(again))


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_step_equals_torch_with_one_optimizer_per_parameter(ours, theirs, options):
    model, twin = two_layers(), two_layers()
    train(model, ours(model, 0.05, **options), 20)
    by_hand = []
    for parameter in twin.parameters():
        lr = 0.05 * parameter.shape[1] ** -0.5
        decay = {"weight_decay": options["weight_decay"] / lr} if "weight_decay" in options else {}
        by_hand.append(theirs([parameter], lr=lr, **{**options, **decay}))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        twin.zero_grad()
        F.mse_loss(twin(x), x.prod(dim=1, keepdim=True).tanh()).backward()
        for optimizer in by_hand:
            optimizer.step()
    assert_bit_equal(parameters(model), parameters(twin))


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_training_converges(ours, theirs, options):
    model = two_layers(width=64)
    losses = train(model, ours(model, 0.2, **options), 200)
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_state_round_trips_through_a_checkpoint(ours, theirs, options):
    model = two_layers()
    optimizer = ours(model, 0.05, **options)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file)
    resumed = two_layers()
    resumed_optimizer = ours(resumed, 123.0, **options)  # the rate comes from the checkpoint
    resumed.load_state_dict(checkpoint["model"])
    resumed_optimizer.load_state_dict(checkpoint["optimizer"])
    assert resumed_optimizer.param_groups[0]["lr_factor"] == 0.5
    train(model, optimizer, 5)
    train(resumed, resumed_optimizer, 5)
    assert_bit_equal(parameters(model), parameters(resumed))


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_schedules_multiply_every_rate(ours, theirs, options):
    model = two_layers()
    optimizer = ours(model, 0.5, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, optimizer, 3, schedule)
    assert [g["lr"] for g in optimizer.param_groups] == [
        0.5 * g["lr_factor"] / 8 for g in optimizer.param_groups
    ]


@pytest.mark.parametrize("optimizer_class", [optim.AdamW, optim.SGD])
@pytest.mark.parametrize(("lr", "width"), [(0.5, 16), (2.0, 16), (0.5, 256)])
def test_decay_per_step_is_independent_and_follows_the_schedule(optimizer_class, lr, width):
    model = two_layers(width)
    before = parameters(model)
    optimizer = optimizer_class(model, lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        schedule.step()
    for old, new in zip(before, model.parameters(), strict=True):
        # a few roundings of 2^-24 each: the decay, once per step, and its product with the rate
        torch.testing.assert_close(new.detach(), old * 0.9 * 0.95, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS)
def test_zero_rate_changes_nothing(ours, theirs, options):
    model = two_layers()
    before = parameters(model)
    optimizer = ours(model, 1.0, **{**options, "weight_decay": 0.1})
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 3)
    train(model, ours(model, 0.0, **{**options, "weight_decay": 0.0}), 3)
    assert_bit_equal(before, parameters(model))


def test_unit_scaled_layer_moves_exactly_as_mup_does():
    """Law (A, B, C) -> (A t, B / t, C / t): the same Adam run, here bit for bit as t = 1/8."""
    fan_in = 64
    unit = Hidden(fan_in, 8)
    plain = nn.Linear(fan_in, 8, bias=False)
    with torch.no_grad():
        plain.weight.copy_(unit.weight * fan_in**-0.5)
    lr = 0.3
    optimizers = [
        (unit, optim.Adam(unit, lr, eps=0.0)),
        (plain, torch.optim.Adam(plain.parameters(), lr=lr / fan_in, eps=0.0)),
    ]
    x, y = torch.randn(32, fan_in), torch.randn(32, 8)
    for _ in range(10):
        for layer, optimizer in optimizers:
            optimizer.zero_grad()
            F.mse_loss(layer(x), y).backward()
            optimizer.step()
    assert_bit_equal([unit.weight.detach() * fan_in**-0.5], [plain.weight.detach()])


@pytest.mark.parametrize("ours", [optim.AdamW, optim.SGD])
def test_change_of_the_output_in_one_step_does_not_depend_on_width(ours):
    """Coordinate check on one row and a unit gradient, the case that the rules are made for.

    Adam adds lr fan_in^-1/2 sign(g_i x_j), so an output moves by lr mean|x|; SGD adds
    lr fan_in^-1/2 g_i x_j, so it moves by lr mean(x^2) |g_i|, with rms lr. Standard error at the
    smallest width: sd(x^2) / sqrt(256) = 9 %.
    """
    changes = []
    for width in (256, 1024, 4096):
        layer = Hidden(width, 64)
        optimizer = ours(layer, 0.5)
        x = torch.randn(1, width)
        before = layer(x)
        before.backward(
            torch.randn(1, 64) * width**0.5
        )  # the unit-scaled product's backward factor
        optimizer.step()
        changes.append((layer(x) - before).square().mean().sqrt().item())
    expected = 0.5 * (2 / torch.pi) ** 0.5 if ours is optim.AdamW else 0.5
    assert changes == pytest.approx([expected] * 3, rel=3 * 0.09 + 3 * 64**-0.5 / 2)


def test_parameters_without_a_kind_are_refused_and_groups_are_taken():
    model = two_layers()
    with pytest.raises(ValueError, match=r"'parameter 0' of shape .*pass the model.*torch\.optim"):
        optim.AdamW(model.parameters(), 1.0)
    groups = optim.param_groups(model, 1.0)
    assert optim.AdamW(groups, 1.0).param_groups[0]["kind"] == "hidden"


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("states", [None, "fp32"])
@pytest.mark.parametrize("ours", [optim.AdamW, optim.SGD])
def test_a_warm_up_from_zero_decays_by_the_share_of_the_rate(ours, states, by_hand):
    """With no gradient nothing but the decay moves a weight: by 0.1 at the peak rate, 0 before."""
    model = two_layers()
    before = parameters(model)
    optimizer = ours(model, 0.5, weight_decay=0.1, states=states)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    if by_hand:
        optimizer = ours(model, 0.5, weight_decay=0.1, states=states)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_bit_equal(before, parameters(model))
    if by_hand:
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * group["lr_factor"]
    else:
        schedule.step()
    optimizer.step()
    for old, new in zip(before, parameters(model), strict=True):
        torch.testing.assert_close(new, 0.9 * old, rtol=4 * 2**-24, atol=0)


@pytest.mark.parametrize("states", [None, "fp32"])
@pytest.mark.parametrize("ours", [optim.AdamW, optim.Adam, optim.SGD])
def test_a_group_without_names_among_named_ones_is_refused_in_one_line(ours, states):
    optimizer = ours(two_layers(), 0.1, states=states)
    count, new = len(optimizer.param_groups), nn.Parameter(torch.ones(2, 2))
    for group in ({"params": [new]}, {"params": new}, {"params": iter([new])}):
        with pytest.raises(ValueError, match=r"have no names, .*pass pairs, as .*head\.weight"):
            optimizer.add_param_group(group)
    with pytest.raises(ValueError, match="1 of 2 parameters of the new group have no name"):
        optimizer.add_param_group({"params": [("a", new), nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == count
    optimizer.add_param_group({"params": iter([("head.weight", new)])})
    assert optimizer.param_groups[-1]["param_names"] == ["head.weight"]


def test_a_group_with_names_among_nameless_ones_is_refused_in_one_line():
    optimizer = optim.AdamW(list(two_layers().parameters()), 0.1, rules=None)
    new = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"AdamW: the parameters of the new group have names"):
        optimizer.add_param_group({"params": [("a", new)]})
    optimizer.add_param_group({"params": new})
