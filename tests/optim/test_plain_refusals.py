"""An optimizer without codecs does not take codes for numbers, nor a group's wish for nothing."""

import copy

import pytest
import torch
from torch import nn

from unitscale import optim

CLASSES = {"AdamW": optim.AdamW, "Adam": optim.Adam, "SGD": optim.SGD}
each = pytest.mark.parametrize("name", CLASSES)


def trained(name: str, states: str | None, momentum: float = 0.9):
    torch.manual_seed(0)
    model = nn.Linear(64, 256)
    options = {"momentum": momentum} if name == "SGD" else {}
    optimizer = CLASSES[name](model, lr=0.1, rules=None, states=states, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
    return optimizer


@each
@pytest.mark.parametrize("states", ["coat", "fp8-lm"])
def test_a_state_of_codes_is_refused_and_changes_nothing(name: str, states: str) -> None:
    plain = trained(name, None)
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ValueError, match=f"saved with states='{states}'.*states='fp32'"):
        plain.load_state_dict(trained(name, states).state_dict())
    after = plain.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, state in after["state"].items():
        for key, value in state.items():
            assert value is None or torch.equal(value, before["state"][i][key])


@each
def test_states_of_its_own_and_of_torch_load_as_ever(name: str) -> None:
    plain = trained(name, None)
    plain.load_state_dict(trained(name, None).state_dict())
    coded = trained(name, "fp32")
    coded.load_state_dict(trained(name, "coat").state_dict())


@each
@pytest.mark.parametrize("states", ["coat", "cota"])
def test_a_group_with_states_needs_an_optimizer_with_states(name: str, states: str) -> None:
    parameters = list(nn.Linear(8, 8).parameters())
    with pytest.raises(ValueError, match=f"a group has states='{states}'"):
        CLASSES[name]([{"params": parameters, "states": states}], lr=0.1, rules=None)
    optimizer = CLASSES[name](parameters, lr=0.1, rules=None)
    with pytest.raises(ValueError, match=f"a group has states='{states}'"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "states": states})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("key", ["0", "weight", 7])
@each
def test_a_state_that_fits_no_parameter_is_refused_and_changes_nothing(name: str, key) -> None:
    coded = trained(name, "coat")
    before = coded.state_dict()
    wrong = copy.deepcopy(before)
    wrong["state"][key] = wrong["state"].pop(0)
    with pytest.raises(ValueError, match=f"the state of {key!r} fits no parameter"):
        coded.load_state_dict(wrong)
    assert coded.state_dict()["state"].keys() == before["state"].keys()


@pytest.mark.parametrize("version", ["2", None, 2.5])
def test_a_version_that_is_no_number_is_refused(version) -> None:
    coded = trained("AdamW", "coat")
    wrong = copy.deepcopy(coded.state_dict())
    wrong["param_groups"][0]["states_version"] = version
    with pytest.raises(ValueError, match="load_state_dict: the states are 'coat', version"):
        coded.load_state_dict(wrong)
