"""Units in a file: saved with a checkpoint, and a run that goes on as if it had not stopped."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from units.training import assert_same_trace, train
from unitscale.units import load_units, rows, save_units, unit_scale
from unitscale.units.forward import session_of


class Model(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.dropout(layer(x * 7).tanh(), 0.25, self.training)
        return x.square().mean()


def batches(count: int) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 8, generator=generator),) for _ in range(count)]


def scaled(recipe: str = "fp8", **options) -> Model:
    torch.manual_seed(0)
    return unit_scale(Model(), recipe, inner="eager", **options)


def units(model: nn.Module) -> dict[str, tuple[float, float]]:
    return {row.name: (row.s, row.phi) for row in rows(model)}


def test_file_holds_exponents_that_a_person_can_read(tmp_path: Path):
    model = scaled()
    train(model, batches(2))
    save_units(model, tmp_path / "units.json")
    content = json.loads((tmp_path / "units.json").read_text())
    for row in rows(model):
        found = content["units"][row.name]
        if row.op != "input":
            assert (2.0 ** found["s"], 2.0 ** found["phi"]) == (row.s, row.phi)
    assert (content["version"], content["step"]) == (4, 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "units.json"]  # no half-written file


def test_units_come_back_before_the_first_step(tmp_path: Path):
    model = scaled(remeasure="once")
    train(model, batches(2))
    save_units(model, tmp_path / "units.json")
    torch._dynamo.reset()
    other = scaled(remeasure="once")
    load_units(other, str(tmp_path / "units.json"))
    other(batches(1)[0][0] * 100)
    assert units(other) == units(model)


@pytest.mark.parametrize("recipe", ["fp8", "fp32-units"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resumed_run_goes_on_bit_identically(tmp_path: Path, recipe, stop):
    """Stopped after a few steps, restored in a new model with the schedule where it stood."""
    data = batches(9)
    whole = train(scaled(recipe), data)
    torch._dynamo.reset()

    first = scaled(recipe)
    before = train(first, data[:stop])
    save_units(first, tmp_path / "units.json")
    state, random_state = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    torch._dynamo.reset()

    second = scaled(recipe)
    second.load_state_dict(state)
    load_units(second, tmp_path / "units.json")
    after = continued(second, data[stop:], random_state)
    assert_same_trace(
        type(whole)(before.losses + after.losses, before.gradients + after.gradients, after.state),
        whole,
    )


class WithoutTarget(Model):
    """Another graph in evaluation, whose tensors outside of submodules have names of their own."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) * 3
        return y if self.training else y.exp()


def test_names_do_not_depend_on_which_graph_comes_first_after_a_resume(tmp_path: Path):
    models = [unit_scale(WithoutTarget(), "fp32-units", inner="eager") for _ in range(2)]
    x = batches(1)[0][0]
    for step, (model, order) in enumerate(zip(models, ("te", "et"), strict=True)):
        if step == 1:
            load_units(model, tmp_path / "units.json")
        for mode in order:
            model.train(mode == "t")
            with torch.set_grad_enabled(mode == "t"):
                loss = model(x)
            if mode == "t":
                loss.backward()
        save_units(model, tmp_path / "units.json")
    names = [units(model).keys() for model in models]
    assert names[0] == names[1]
    assert "mul#1" in names[0]
    assert "graph1.exp" in names[0]
    assert json.loads((tmp_path / "units.json").read_text())["step"] == 2


def continued(model: nn.Module, data: list[tuple[Tensor]], random_state: Tensor):
    """`train`, from a random state instead of a seed."""
    kept = torch.manual_seed
    torch.manual_seed = lambda seed: torch.set_rng_state(random_state)
    try:
        return train(model, data)
    finally:
        torch.manual_seed = kept


def test_units_taken_after_a_drift_are_those_of_the_file(tmp_path: Path):
    """Loaded into a model that has measured other units: the file wins."""
    model = scaled("fp32-units", remeasure="once")
    train(model, batches(2))
    save_units(model, tmp_path / "units.json")
    other = unit_scale(Model(), "fp32-units", inner="eager", remeasure="once")
    other(batches(1)[0][0] * 1000).backward()
    assert units(other) != units(model)
    load_units(other, tmp_path / "units.json")
    assert units(other) == units(model)
    other(batches(1)[0][0]).backward()


def write(path: Path, *, depth: int) -> Path:
    """Units of a model of some depth, in a file."""
    model = unit_scale(Model(depth), "fp32-units", inner="eager")
    model(batches(1)[0][0]).backward()
    save_units(model, path)
    torch._dynamo.reset()
    return path


def test_file_of_another_model_lists_missing_and_extra_keys(tmp_path: Path):
    deep, shallow = write(tmp_path / "deep", depth=3), write(tmp_path / "shallow", depth=1)
    model = scaled()
    model(batches(1)[0][0]).backward()
    kept = units(model)
    with pytest.raises(ValueError, match="deep is of another model; missing") as error:
        load_units(model, deep)
    extra = "['layers.2.bias', 'layers.2.weight'] (2 in all)"
    assert str(error.value).endswith(f"missing [] (0 in all), extra {extra}.")
    with pytest.raises(ValueError, match=r"missing \['layers.1.bias', 'layers.1.weight'\] \(2 in"):
        load_units(model, shallow)
    assert units(model) == kept


class Wider(Model):
    """The same parameters, another function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).exp() + x.sum()


def test_file_of_another_function_lists_missing_and_extra_keys(tmp_path: Path):
    path = write(tmp_path / "units.json", depth=2)
    model = unit_scale(Wider(), "fp32-units", inner="eager")
    model(batches(1)[0][0]).backward()
    missing = r"missing \['add', 'exp', 'sum'\] \(3 in all\), extra \[\]"
    with pytest.raises(ValueError, match=missing):
        load_units(model, path)


@pytest.mark.parametrize("depth", [1, 3])
def test_file_of_another_model_is_refused_before_the_first_step_too(tmp_path: Path, depth):
    path = write(tmp_path / "other", depth=depth)
    with pytest.raises(ValueError, match=r"other is of another model.*'layers\.[12]\.bias'"):
        load_units(scaled(), path)


def test_model_without_units_is_refused(tmp_path: Path):
    for call in (save_units, load_units):
        with pytest.raises(ValueError, match=f"{call.__name__}: this Model has no units"):
            call(Model(), tmp_path / "units.json")


def test_missing_file_is_pythons_own_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_units(scaled(), tmp_path / "nothing.json")


def test_saving_replaces_the_file_whole(tmp_path: Path):
    path = tmp_path / "units.json"
    path.write_text("something long that is not units " * 1000)
    model = scaled()
    train(model, batches(1))
    save_units(model, path)
    assert json.loads(path.read_text())["step"] == 1


@pytest.mark.parametrize("recipe", ["fp8", "fp32-units"])
def test_there_is_nothing_to_save_before_any_step(tmp_path: Path, recipe):
    with pytest.raises(ValueError, match=r"save_units: this Model has no units yet; they are set"):
        save_units(scaled(recipe), tmp_path / "units.json")
    assert list(tmp_path.iterdir()) == []


def test_saving_fails_whole(tmp_path: Path):
    """What was there before stays, and no half-written file does."""
    model = scaled()
    train(model, batches(1))
    with pytest.raises(FileNotFoundError):
        save_units(model, tmp_path / "missing" / "units.json")
    assert list(tmp_path.iterdir()) == []


DAMAGE = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "brackets": lambda text: "[" * 100_000,
    "list": lambda text: f"[{text}]",
    "number": lambda text: "7",
    "null": lambda text: "null",
    "nan": lambda text: text.replace('"step": 2', '"step": NaN'),
    "other version": lambda text: text.replace('"version": 4', '"version": 1'),
    "2^130": lambda text: text.replace('"s": ', '"s": 13', 1),
    "fraction": lambda text: text.replace('"phi": ', '"phi": 0.5', 1).replace("0.50", "0.5"),
    "text": lambda text: text.replace('"requested": false', '"requested": "no"'),
    "no parameters": lambda text: text.replace('"parameters"', '"names"'),
    "other parameters": lambda text: text.replace('"layers.0.bias"', '"layers.9.bias"', 1),
    "parameters is text": lambda text: json.dumps(json.loads(text) | {"parameters": "layers"}),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_refused_in_a_line_and_changes_nothing(tmp_path: Path, kind, trained):
    path, model = tmp_path / "units.json", scaled()
    train(model, batches(2))
    save_units(model, path)
    text = path.read_text()
    path.write_text(DAMAGE[kind](text))
    assert path.read_text() != text
    other = scaled()
    if trained:
        train(other, batches(3))
        rows(other)
    before = session_of(other).store.state_dict()
    with pytest.raises(ValueError, match=r"^load_units: .*units\.json") as error:
        load_units(other, path)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400
    assert session_of(other).store.state_dict() == before
    path.write_text(text)
    load_units(other, path)
    assert session_of(other).store.state_dict() == session_of(model).store.state_dict()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "units.json").write_bytes(b"\xff\xfe\x00units")
    with pytest.raises(ValueError, match=r"load_units: .*units\.json is no file of save_units"):
        load_units(scaled(), tmp_path / "units.json")
