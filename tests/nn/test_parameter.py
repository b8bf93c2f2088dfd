"""Parameters that say their kind, and what the statement survives."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import unitscale as us
from unitscale import nn as unn
from unitscale import optim


class Own(nn.Module):
    """A model that uses no module of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.table = us.Parameter(torch.randn(50, 16), "input", width=16)
        self.layers = nn.ParameterList(us.Parameter(torch.randn(16, 16), "hidden") for _ in "ab")
        self.columns = us.Parameter(torch.randn(16, 4), "hidden", width=16)  # x @ w
        self.gain = us.Parameter(torch.ones(16), "norm")
        self.bias = us.Parameter(torch.zeros(16), "bias")
        self.head = us.Parameter(torch.randn(50, 16), "output")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table[ids]
        for layer in self.layers:
            x = torch.tanh(x @ layer.T / 4) * self.gain + self.bias
        return (x @ self.columns).sum() + (x @ self.head.T / 16).sum()


RATES = {
    "table": 1 / 4,
    "layers.0": 1 / 4,
    "layers.1": 1 / 4,
    "columns": 1 / 4,
    "gain": 2**-7,
    "bias": 2**-7,
    "head": 1.0,
}


def rates(model: object, **options: object) -> dict[str, float]:
    groups = optim.param_groups(model, 1.0, **options)
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_rates_follow_from_kinds() -> None:
    assert rates(Own()) == RATES


def reloaded(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def with_new_tensors(model: nn.Module) -> nn.Module:
    """As those do who convert or re-wrap a model's parameters."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.data.clone()))
    return model


def with_state(model: nn.Module, **options: bool) -> nn.Module:
    other = Own()
    other.load_state_dict(model.state_dict(), **options)
    return other


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        reloaded,
        with_new_tensors,
        with_state,
        lambda model: with_state(model, assign=True),
        lambda model: model.double(),
        lambda model: copy.deepcopy(with_new_tensors(model)),
        lambda model: model.to("meta"),
    ],
    ids=["deepcopy", "pickle", "re-wrapped", "state", "assigned", "double", "both", "meta"],
)
def test_kinds_survive(change: object) -> None:
    assert rates(change(Own())) == RATES


def test_kinds_survive_sharding(tmp_path: object) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = Own()
        fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        assert isinstance(model.table, DTensor)
        assert not hasattr(model.table, "unitscale_kind")  # so the tensor alone would not do
        assert rates(model) == RATES
        assert rates(model.parameters(), within=model) == RATES
    finally:
        torch.distributed.destroy_process_group()


def test_parameters_alone_say_their_kind() -> None:
    model = Own()
    assert rates(model.named_parameters()) == RATES
    assert list(rates(list(model.parameters())).values()).count(1.0) == 1
    optimizer = optim.AdamW(model.parameters(), 1.0)
    model(torch.randint(50, (2, 3))).backward()
    optimizer.step()
    assert {group["kind"] for group in optimizer.param_groups} == set(us.nn.parameter.KINDS)


def test_a_tied_parameter_is_one() -> None:
    model = Own()
    model.other = model.gain
    assert rates(model) == RATES
    assert rates([*model.named_parameters(), ("again", model.gain)]) == RATES
    model.head = model.table
    model.stated_kinds["head"] = ("output", None)
    with pytest.raises(ValueError, match=r"'table' \(input\) and 'head' \(output\) are one tied"):
        optim.param_groups(model, 1.0)


def test_a_statement_goes_before_the_modules_own_and_a_wish_before_both() -> None:
    layer = unn.Linear(16, 4, bias=False)
    layer.weight = us.Parameter(torch.randn(4, 16), "output")
    assert rates(layer) == {"weight": 1.0}
    layer.weight = us.Parameter(torch.randn(4, 16), "hidden", width=64)
    assert rates(layer) == {"weight": 1 / 8}
    assert rates(layer, kinds={"weight": "output"}) == {"weight": 1.0}
    assert rates(unn.Linear(16, 4, bias=False)) == {"weight": 1 / 4}


def test_a_parameter_without_a_kind_is_named() -> None:
    model = Own()
    model.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"no kind is known for 'scale' \(in .*Own\).*Parameter"):
        optim.param_groups(model, 1.0)
    with pytest.raises(ValueError, match=r"'parameter 1' of shape \(3,\), so no learning rate"):
        optim.param_groups([model.gain, model.scale], 1.0)
    with pytest.raises(ValueError, match=r"'scale' of shape \(3,\), so no learning rate"):
        optim.param_groups([("gain", model.gain), ("scale", model.scale)], 1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3), "gain"), ValueError, "kind is 'gain'; the kinds are hidden, input"),
        ((torch.ones(3), "hidden"), ValueError, r"needs at least 2 .* shape is \(3,\)"),
        ((torch.ones(3, 4), "input"), ValueError, r"'input' of shape \(3, 4\) needs width="),
        ((torch.ones(3, 4), "hidden", 0), ValueError, "width is 0; expected at least 1"),
        ((torch.ones(3, 4), "hidden", 2.0), TypeError, r"width is 2\.0; expected an integer"),
        ((torch.ones(3), "norm", 3), ValueError, "width=3 has no meaning for kind 'norm'"),
        ((torch.ones(3).long(), "norm"), TypeError, r"data is torch\.int64; expected a floating"),
        (([1.0], "norm"), TypeError, "data is list; expected a floating"),
    ],
)
def test_bad_argument_is_named(arguments: tuple, error: type, message: str) -> None:
    data, kind, width = (*arguments, None)[:3]
    with pytest.raises(error, match=message):
        us.Parameter(data, kind, width=width)


def test_other_parameters_are_left_alone() -> None:
    us.Parameter(torch.ones(3), "norm")
    assert not hasattr(nn.Linear(3, 4), "stated_kinds")
