"""Groups from parameters and from groups; depth by streams, in nested and changing containers."""

import pytest
import torch
from torch import nn

import unitscale as us
from unitscale import nn as unn
from unitscale import optim


def layer() -> unn.Linear:
    return unn.Linear(16, 16, bias=False)


def branch(scheme: object = unn.RunningMean(), body: nn.Module | None = None) -> unn.Residual:
    return unn.Residual(layer() if body is None else body, scheme)


def depths(model: nn.Module) -> dict[str, float]:
    """What the base rate is divided by for depth: the rule is `16^-1/2 * depth^-1/2`."""
    groups = optim.param_groups(model, 1.0)
    return {
        name: round((4 * group["lr"]) ** -2, 9)
        for group in groups
        for name in group["param_names"]
        if group["kind"] == "hidden"
    }


def test_a_stack_in_a_stack_is_one_stream() -> None:
    model = unn.Stack(unn.Stack(branch(), branch()), nn.Sequential(unn.Stack(branch())), branch())
    assert set(depths(model).values()) == {4.0}


def test_a_stack_in_a_branch_has_a_stream_of_its_own() -> None:
    inner = unn.Stack(branch(), branch(), branch())
    model = unn.Stack(branch(), branch(body=inner))
    assert depths(model) == {
        "0.body.weight": 2.0,
        **{f"1.body.{i}.body.weight": 6.0 for i in range(3)},
    }


def test_stated_numbers_add_up_in_a_stream() -> None:
    told = unn.Stack(layer(), branches=5)
    assert set(depths(unn.Stack(told, branch())).values()) == {6.0}  # and no warning
    assert depths(nn.Sequential(told, unn.Stack(branch()))) == {
        "0.0.weight": 5.0,
        "1.0.body.weight": 1.0,
    }


def test_a_layer_that_is_there_twice_adds_twice() -> None:
    shared = branch(unn.Ratio())
    assert depths(unn.Stack(shared, shared, shared)) == {"0.body.weight": 3.0}


def test_depth_follows_a_changing_container() -> None:
    model = unn.Stack(branch(), branch())
    model.append(branch())
    assert set(depths(model).values()) == {3.0}
    del model[0]
    assert set(depths(model).values()) == {2.0}
    assert set(depths(model[:1]).values()) == {1.0}
    model.insert(0, unn.Stack(branch(), branch()))
    assert set(depths(model).values()) == {4.0}


def test_reindex_gives_ratios_anew() -> None:
    def stack(count: int) -> unn.Stack:
        scheme = unn.Alternating(alpha_res=2.0)
        return unn.Stack(
            *(unn.Residual(layer(), scheme, index=i, depth=count) for i in range(count))
        )

    model = stack(6)
    del model[4:]
    want = [module.tau for module in stack(4)]
    assert [module.tau for module in model] != pytest.approx(want)
    assert [module.tau for module in model.reindex()] == want
    nested = unn.Stack(stack(2), unn.Stack(layer(), branches=1), stack(1)).reindex()
    whole = stack(4)
    assert [nested[0][1].tau, nested[2][0].tau] == [whole[1].tau, whole[3].tau]


def test_reindex_refuses_one_branch_at_two_places() -> None:
    shared = branch(unn.RunningMean())
    with pytest.raises(ValueError, match="one Residual is branch 0 and branch 1, whose ratios"):
        unn.Stack(shared, shared).reindex()
    shared = branch(unn.Ratio(ratio=0.5))
    assert unn.Stack(shared, shared).reindex()[1].tau == 0.5


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "table": unn.Embedding(50, 16),
            "stack": unn.Stack(branch(), branch()),
            "norm": unn.LayerNorm(16, bias=False),
        }
    )


def rates(groups: list) -> dict[str, float]:
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_parameters_of_a_model_have_its_kinds_and_depths() -> None:
    net = model()
    want = rates(optim.param_groups(net, 2.0))
    assert rates(optim.param_groups(net.parameters(), 2.0, within=net)) == want
    assert rates(optim.param_groups(net.named_parameters(), 2.0, within=net)) == want
    with pytest.raises(ValueError, match=r"'parameter 0' of shape \(3,\) is no parameter of"):
        optim.param_groups([nn.Parameter(torch.ones(3))], 1.0, within=net)
    with pytest.raises(TypeError, match="within= is for parameters"):
        optim.param_groups(net, 1.0, within=net)


def test_groups_keep_their_options_and_their_own_rate_and_decay() -> None:
    net = model()
    groups = [
        {"params": [net["table"].weight], "lr": 0.5, "betas": (0.9, 0.95)},
        {"params": list(net["stack"].parameters()), "weight_decay": 0.25},
        {"params": net["norm"].weight},
    ]
    table, hidden, norm = optim.param_groups(groups, 2.0, weight_decay=0.1, within=net)
    assert (table["lr"], table["betas"], table["lr_factor"]) == (0.5 / 4, (0.9, 0.95), 1 / 4)
    assert table["lr"] * table["weight_decay"] == pytest.approx(0.1)
    assert hidden["lr"] == pytest.approx(2.0 / 4 / 2**0.5)
    assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(0.25)
    assert (norm["lr"], norm["weight_decay"]) == (2.0 / 128, 0.0)
    assert all("betas" not in group for group in (hidden, norm))


def test_groups_made_here_keep_their_factors_at_another_rate() -> None:
    net = model()
    optimizer = optim.AdamW(net, 1.0, weight_decay=0.1)
    again = optim.param_groups(optimizer.param_groups, 4.0, weight_decay=0.1)
    want = optim.param_groups(net, 4.0, weight_decay=0.1)
    assert rates(again) == rates(want)
    assert [g["weight_decay"] for g in again] == [g["weight_decay"] for g in want]


def test_frozen_parameters_and_those_listed_twice() -> None:
    gain, frozen = us.Parameter(torch.ones(3), "norm"), nn.Parameter(torch.ones(3), False)
    (group,) = optim.param_groups([gain, frozen, gain], 1.0)
    assert group["params"] == [gain]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "got no parameters"),
        ([3], TypeError, "'parameter 0' is a int; expected a model"),
        ([us.Parameter(torch.ones(3, 4), "output"), "w"], TypeError, "'parameter 1' is a str"),
        ([("t", nn.Parameter(torch.ones(3, 4)))], ValueError, "no kind is known for 't' of shape"),
        (
            [{"params": [us.Parameter(torch.ones(3), "norm")], "lr": -1.0}],
            ValueError,
            r"lr is -1\.0; expected a finite number",
        ),
    ],
)
def test_bad_parameters_are_named(given: list, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        optim.param_groups(given, 1.0)


def test_a_table_among_bare_parameters_has_to_say_its_width() -> None:
    table = nn.Parameter(torch.randn(50, 16))
    with pytest.raises(ValueError, match=r"'t' of shape \(50, 16\) is of kind 'input'"):
        optim.param_groups([("t", table)], 1.0, kinds={"t": "input"})
