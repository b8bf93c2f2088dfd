"""Copies of a scaled model: they keep the recipe, or say that they do not."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import unitscale as us
from unitscale.units import load_units, save_units, unit_scale
from unitscale.units.forward import session_of


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def batch(scale: float = 1.0) -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * scale


def scaled(steps: int = 0, scale: float = 1.0, **options) -> Model:
    torch.manual_seed(0)
    model = unit_scale(Model(), **{"recipe": "fp8", "inner": "eager"} | options)
    for _ in range(steps):
        model(batch(scale)).square().mean().backward()
        model.zero_grad()
    return model


def plain() -> Model:
    torch.manual_seed(0)
    return Model()


def s_of(model: nn.Module) -> float:
    return {row.name: row.s for row in us.unit_rows(model)}["first.linear"]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_deepcopy_keeps_recipe_units_and_schedule(steps):
    model = scaled(steps, 100.0, remeasure=[0, 5])
    other = copy.deepcopy(model)
    mine, its = session_of(model), session_of(other)
    assert its is not mine
    assert its.store is not mine.store
    assert its.recipe == mine.recipe
    assert its.store.state_dict() == mine.store.state_dict()
    assert (its.store.remeasure, its.store.scale) == ([0, 5], True)
    assert its.model is other
    assert bool(its.store.units) == bool(steps)
    with torch.no_grad():
        got = other(batch(100.0))
        assert torch.equal(got, model(batch(100.0)))
        assert not torch.equal(got, plain()(batch(100.0)))


def test_a_copy_of_a_plain_recipe_has_it_too():
    torch.manual_seed(0)
    model = us.apply_recipe(Model(), "fp8-current", inner="eager")
    other = copy.deepcopy(model)
    assert torch.equal(other(batch()), model(batch()))
    assert us.coverage(other) == 1.0


def test_copies_train_apart():
    model = scaled(1, recipe="fp32-units")
    other = copy.deepcopy(model)
    before, step = s_of(model), session_of(model).store.step
    assert all(p is not q for p, q in zip(model.parameters(), other.parameters(), strict=True))
    for _ in range(2):
        other(batch(1000.0)).square().mean().backward()
    assert all(p.grad is None for p in model.parameters())
    assert s_of(model) == before
    assert session_of(model).store.step == step
    assert s_of(other) > 100 * before


def test_a_copy_measures_by_its_own_schedule_from_where_it_stands():
    """Its units follow it: what it measures first counts, however many calls the model had."""
    model = scaled(9, recipe="fp32-units")
    other = copy.deepcopy(model)
    assert session_of(other).store.step == 9
    us.recalibrate(other)
    other(batch(1000.0)).square().mean().backward()
    assert s_of(other) > 100 * s_of(model)


def test_the_model_may_go_before_its_copy():
    model = scaled(1)
    want = model(batch()).detach()
    other = copy.deepcopy(model)
    del model
    assert torch.equal(other(batch()), want)


def test_copy_of_a_copy_and_a_copy_within_a_parent():
    model = scaled(1)
    for other in (copy.deepcopy(copy.deepcopy(model)), copy.deepcopy(nn.ModuleList([model]))[0]):
        assert session_of(other).model is other
        assert torch.equal(other(batch()), model(batch()))


def test_averaged_model_runs_under_the_recipe():
    model = scaled(1)
    averaged = AveragedModel(model)
    with torch.no_grad():
        assert torch.equal(averaged(batch()), model(batch()))
        assert not torch.equal(averaged(batch()), plain()(batch()))
    averaged.update_parameters(model)  # the first is a copy
    for p in model.parameters():
        p.data.mul_(3)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.first.weight, plain().first.weight * 2)
    assert us.coverage(averaged.module) == 1.0


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("save", [through_pickle, through_torch])
def test_a_pickle_is_a_plain_model_and_says_so(save, steps):
    model = scaled(steps)
    with pytest.warns(UserWarning, match=r"Model is pickled without its recipe 'fp8'.*plain model"):
        other = save(model)
    assert session_of(other) is None
    assert torch.equal(other(batch()), plain()(batch()))
    assert vars(other)["unitscale_session"] is None
    assert all("_compiled_call_impl" not in vars(m) for m in other.modules())
    other(batch()).sum().backward()
    with pytest.raises(ValueError, match="a pickle of a scaled model is a plain model"):
        us.unit_rows(other)


def test_a_pickle_can_be_loaded_without_this_library():
    with pytest.warns(UserWarning, match="pickled without"):
        content = pickle.dumps(scaled(2), protocol=2)
    assert b"unitscale_session" in content  # its value is None
    assert b"unitscale." not in content


def test_a_loaded_pickle_goes_on_with_saved_units(tmp_path):
    model = scaled(3)
    save_units(model, tmp_path / "units.json")
    with pytest.warns(UserWarning, match="pickled without"):
        other = unit_scale(through_pickle(model), "fp8", inner="eager")
    load_units(other, tmp_path / "units.json")
    with torch.no_grad():
        assert torch.equal(other(batch()), model(batch()))
    assert session_of(other).store.step == 3


def test_a_state_dict_knows_nothing_of_the_recipe_and_warns_of_nothing():
    model = scaled(2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Model()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(batch()), plain()(batch()))


def test_a_parent_that_is_pickled_warns_too():
    parent = nn.Sequential(scaled(1))
    with pytest.warns(UserWarning, match="Model is pickled without its recipe"):
        other = through_pickle(parent)
    assert torch.equal(other(batch()), plain()(batch()))


class Factor(Model):
    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


def shallow(steps: int) -> tuple[Factor, Factor]:
    """A scaled model after some calls, and a shallow copy of it that differs in an attribute."""
    model = unit_scale(Factor(), "fp8", inner="eager")
    for _ in range(steps):
        model(batch())
    other = copy.copy(model)
    other.factor = 4.0
    return model, other


@pytest.mark.parametrize("steps", [0, 2])
def test_a_shallow_copy_runs_its_own_forward_under_the_recipe(steps):
    model, other = shallow(steps)
    for _ in range(2):
        assert torch.equal(other(batch()), model(batch()) * 4)
    assert not torch.equal(model(batch()), Model.forward(us.unscale(model), batch()))
    assert us.coverage(other) == 1.0
    assert "(recipe): fp8" in repr(other)


def test_unscaling_a_shallow_copy_leaves_the_modules_that_it_shares():
    model, other = shallow(1)
    other(batch())
    us.unscale(other)
    assert session_of(other) is None
    assert model.first(batch()).sub(nn.Linear.forward(model.first, batch())).any()
    assert us.coverage(model) == 1.0


def test_a_shallow_copy_may_outlive_the_model():
    model, other = shallow(1)
    want = model(batch()).detach() * 4
    del model
    assert torch.equal(other(batch()), want)
    assert us.coverage(other) == 1.0


@pytest.mark.filterwarnings("ignore:'first' of a scaled Factor is copied")
@pytest.mark.parametrize("calls", [0, 1])
def test_a_deep_copy_of_a_shallow_copy_stands_alone(calls):
    model, other = shallow(1)
    for _ in range(calls):
        other(batch())
    third = copy.deepcopy(other)
    assert torch.equal(third(batch()), model(batch()) * 4)
    assert session_of(third) is not session_of(model)
    with torch.no_grad():
        third.first.weight.zero_()
    assert not torch.equal(third(batch()), other(batch()))


PART = "'first' of a scaled Model is copied without recipe 'fp8': the copy is plain"


def test_a_deep_copy_of_a_part_says_that_it_is_plain():
    model = scaled(1)
    for part in (model.first, nn.ModuleList([model.first, model.second])):
        with pytest.warns(UserWarning, match=PART) as told:
            other = copy.deepcopy(part)
        assert len(told) == 1
        other.compile(backend="eager")
    plain_one = copy.deepcopy(us.unscale(model).first)  # and this says nothing
    assert "compile" not in vars(plain_one)


def test_parts_of_a_copied_model_are_parts_of_the_copy():
    other = copy.deepcopy(scaled(1))
    with pytest.warns(UserWarning, match=PART):
        copy.deepcopy(other.first)
    us.unscale(other)
    assert all("compile" not in vars(module) for module in other.modules())


def test_a_pickle_of_a_part_says_that_it_is_plain():
    model = scaled(1)
    with pytest.warns(UserWarning, match="Model is pickled without its recipe 'fp8'"):
        other = through_pickle(model.first)
    assert torch.equal(other(batch()), plain().first(batch()))
    other.compile(backend="eager")


def test_compile_of_a_part_keeps_the_recipe_and_says_so():
    model = scaled(1)
    want = model.first(batch())
    with pytest.warns(UserWarning, match=r"compile\(\) of 'first' changes nothing.*recipe 'fp8'"):
        model.first.compile(backend="eager")
    assert torch.equal(model.first(batch()), want)


def test_a_module_with_a_compile_of_its_own_keeps_it():
    class Own(nn.Linear):
        def compile(self, *args: object) -> str:
            return "own"

    model = unit_scale(nn.Sequential(Own(8, 8)), "fp8", inner="eager")
    assert model[0].compile() == "own"


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.out = kind(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_copies_of_a_model_with_a_recurrent_module(kind):
    """Their classes hand all that they hold to a copy."""
    model = unit_scale(Recurrent(kind), "fp8", inner="eager")
    with pytest.warns(UserWarning, match="not in force in recurrent"):
        want = model(batch()).detach()
    other = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="not in force in recurrent"):
        assert torch.equal(other(batch()), want)
    with pytest.warns(UserWarning, match="pickled without"):
        loaded = through_pickle(model)
    assert torch.isfinite(loaded(batch())).all()
