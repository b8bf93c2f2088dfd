"""The history of delayed scales: saved, resumed, refused, shared by processes, recorded."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import unitscale as us
from marks import slow
from processes import work_together
from units.delayed import Layer, amaxes, assert_close, drawn, recipe, scaled, step
from unitscale.units import apply_recipe, unit_scale
from unitscale.units.forward import session_of


def trained(model: nn.Module, start: int, stop: int) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for index in range(start, stop):
        optimizer.zero_grad()
        loss = model(drawn(1.0 + index % 5, index)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize(
    "how",
    [
        apply_recipe,
        unit_scale,
    ],
)
def test_a_run_resumed_with_its_history_goes_on_to_the_bit(tmp_path: Path, how):
    whole = scaled(how, history=4)
    want = trained(whole, 0, 12)
    first = scaled(how, history=4)
    trained(first, 0, 7)
    us.save_units(first, tmp_path / "units.json")
    torch.save(first.state_dict(), tmp_path / "model.pt")
    torch._dynamo.reset()
    second = scaled(how, history=4)
    second.load_state_dict(torch.load(tmp_path / "model.pt"))
    us.load_units(second, tmp_path / "units.json")
    assert trained(second, 7, 12) == want[7:]
    assert amaxes(second) == amaxes(whole)
    assert torch.equal(second.layer.weight, whole.layer.weight)


def test_a_run_resumed_without_it_would_not(tmp_path: Path):
    """The negative: the history does make a difference here."""
    first = scaled(unit_scale, history=4)
    trained(first, 0, 7)
    second = scaled(unit_scale, history=4)
    second.load_state_dict(first.state_dict())
    assert trained(second, 7, 12) != trained(first, 7, 12)


def damaged(path: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def without_amaxes(content: dict) -> None:
    content |= {"amaxes": {}, "pending_amaxes": [], "delayed": False}


def as_version_2(content: dict) -> None:
    content["version"] = 2
    for key in ("amaxes", "pending_amaxes", "delayed", "unshared"):
        del content[key]


REFUSED = {
    "7 training steps and no amaxes of them": without_amaxes,
    "7 training steps and no amaxes": as_version_2,
    "'amaxes' is \\[\\]; expected a dict": lambda c: c.update(amaxes=[]),
    "the amaxes of 'a' are \\[-1\\]; expected a list of positive numbers": lambda c: c.update(
        amaxes={"a": [-1]}
    ),
    "the amaxes of 'a' are \\['1'\\]": lambda c: c.update(amaxes={"a": ["1"]}),
    "the amaxes of 'a' are 3": lambda c: c.update(amaxes={"a": 3}),
    "the amaxes of 'a' are \\[True\\]": lambda c: c.update(amaxes={"a": [True]}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_state_that_cannot_be_gone_on_with_is_refused_and_changes_nothing(
    tmp_path: Path, message
):
    model = scaled(unit_scale)
    trained(model, 0, 7)
    us.save_units(model, tmp_path / "units.json")
    path = damaged(tmp_path / "units.json", REFUSED[message])
    before, steps = amaxes(model), session_of(model).store.step
    with pytest.raises(ValueError, match=message) as error:
        us.load_units(model, path)
    assert "\n" not in str(error.value)
    assert amaxes(model) == before
    assert session_of(model).store.step == steps


def test_a_state_of_version_2_is_taken_by_a_recipe_without_a_history(tmp_path: Path):
    model = unit_scale(Layer(), "fp8", inner="eager")
    trained(model, 0, 2)
    us.save_units(model, tmp_path / "units.json")
    us.load_units(model, damaged(tmp_path / "units.json", as_version_2))
    assert session_of(model).store.step == 2


def test_a_switch_to_another_recipe_and_back_keeps_the_history_if_nothing_was_trained():
    """After steps of the other recipe the amaxes are of another time: a fresh start is right."""
    model = scaled(unit_scale)
    step(model, drawn(50.0), drawn())
    before = amaxes(model)
    us.set_recipe(model, "fp8")
    with torch.no_grad():
        model(drawn())
    us.set_recipe(model, recipe())
    assert amaxes(model) == before
    us.set_recipe(model, "fp8")
    step(model, drawn(), drawn())
    us.set_recipe(model, recipe())
    assert amaxes(model) == {}


def test_recorded_steps_are_steps_of_the_recipe():
    model, other = scaled(), scaled()
    with us.record.record(model, every=1) as recorder:
        got = [step(model, drawn(1.0 + i, i), drawn(1.0, i)) for i in range(4)]
    want = [step(other, drawn(1.0 + i, i), drawn(1.0, i)) for i in range(4)]
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)
    assert amaxes(model) == amaxes(other)
    assert recorder.latest


def run(rank: int, folder: Path, wrapper: str) -> None:
    """Steps of two processes; one has larger values, and NaN in one of them."""
    model = apply_recipe(Layer(), recipe(history=4), inner="eager")
    wrapped = fully_shard(model) if wrapper == "fsdp" else DistributedDataParallel(model)
    for index in range(6):
        x = drawn(1.0 + index + 10.0 * rank, index)
        if rank == 1 and index == 3:
            x[0, 0] = float("nan")
        wrapped(x).backward(drawn(1.0 / (1 + rank), index))
        if rank == 0 and wrapper == "ddp":
            with torch.no_grad():
                model(x)  # one process evaluates, and waits for nobody
    with torch.no_grad():
        model.zero_grad()
    wrapped(drawn())  # here the last step is shared
    torch.save(amaxes(model), folder / f"{rank}.pt")


@pytest.mark.parametrize("wrapper", ["ddp", slow("fsdp")])
def test_processes_end_with_the_same_history(tmp_path: Path, wrapper: str) -> None:
    work_together(run, tmp_path, wrapper)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    largest = [drawn(11.0 + index, index).abs().max().item() for index in (5, 4, 2, 1)]
    assert first["layer.linear:0"] == largest  # step 3 is not kept by either
    assert first["layer.linear:gradient"][0] == drawn(1.0, 5).abs().max().item()
