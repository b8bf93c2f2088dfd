"""The calls a person makes: what they refuse, and what they leave as it was."""

import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from units.training import named
from unitscale.formats import FP16
from unitscale.recipes import Recipe, Unit, uniform
from unitscale.units import UnitRow, apply_recipe, measure, measured, rows, unit_scale

# These plain models take a recipe of units as one written unit-scaled would: cast as it is.
pytestmark = pytest.mark.filterwarnings("ignore:.*rounds tensors at their units")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x * 10 + self.offset)
        return x.square().mean()


def x() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


SCALERS = [unit_scale, apply_recipe]


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize(
    "wrong", [torch.sin, "gpt2", None, Model], ids=["op", "text", "none", "type"]
)
def test_what_is_no_module_is_refused(scaler, wrong):
    got = f"{scaler.__name__}: got {type(wrong).__name__}; expected a torch.nn.Module"
    with pytest.raises(TypeError, match=got):
        scaler(wrong, "fp8")


@pytest.mark.parametrize("scaler", SCALERS)
def test_compiled_model_is_refused(scaler):
    in_place = Model()
    in_place.compile()
    for compiled in (torch.compile(Model()), in_place):
        with pytest.raises(ValueError, match=r"already compiled; pass the plain model.*inner="):
            scaler(compiled, "fp8")


@pytest.mark.parametrize("scaler", SCALERS)
def test_scaled_model_is_refused(scaler):
    model = unit_scale(Model(), inner="eager")
    with pytest.raises(ValueError, match=f"{scaler.__name__}: this Model is already scaled"):
        scaler(model, "fp8")


@pytest.mark.parametrize("scaler", SCALERS)
def test_unknown_recipe_is_refused_and_the_model_is_left_as_it_was(scaler):
    model = Model()
    with pytest.raises(ValueError, match=r"unknown recipe 'fp9'; the recipes are fp32, .* 'fp8'\?"):
        scaler(model, "fp9")
    assert_plain(model)


@pytest.mark.parametrize("scaler", SCALERS)
def test_skip_pattern_that_matches_nothing_is_refused_with_the_nearest_path(scaler):
    model = Model()
    with pytest.raises(ValueError, match=r"skip='layers.0.upp' matches no module of M") as error:
        scaler(model, "fp8", skip=["layers.*.down", "layers.0.upp"])
    assert str(error.value).endswith("nearest path: 'layers.0.up'.")
    assert_plain(model)


def test_skip_pattern_of_a_recipe_is_checked_too():
    recipe = Recipe(name="mine", rules=uniform(None, None, scale=Unit()), skip=("head",))
    with pytest.raises(ValueError, match="skip='head' matches no module"):
        unit_scale(Model(), recipe)


def assert_plain(model: nn.Module) -> None:
    """Not compiled, not scaled."""
    assert model._compiled_call_impl is None
    with pytest.raises(ValueError, match="has no units"):
        rows(model)


def test_model_keeps_its_class_parameters_and_state():
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    assert unit_scale(model, inner="eager") is model
    model(x()).backward()
    assert type(model) is Model
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert [name for name, _ in model.named_modules()] == [n for n, _ in Model().named_modules()]


def test_checkpoint_of_a_scaled_model_loads_into_a_plain_one_and_back():
    scaled, plain = unit_scale(Model(), "fp32-units", inner="eager"), Model()
    scaled(x()).backward()
    file = io.BytesIO()
    torch.save(scaled.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file))
    assert torch.equal(plain(x()), scaled(x()))
    scaled.load_state_dict(Model().state_dict())


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("trained", [False, True])
def test_pickle_of_a_scaled_model_is_a_plain_model_and_says_so(trained):
    model = unit_scale(Model(), "fp32-units", inner="eager")
    if trained:
        model(x()).backward()
    with pytest.warns(UserWarning, match=r"pickled without its recipe 'fp32-units'"):
        other = pickled(model)
    assert_plain(other)
    assert torch.equal(other(x()), model(x()))
    unit_scale(other, "fp32-units", inner="eager")
    other(x()).backward()
    assert named(other)["layers.0.up.linear"].s > 1.0


def test_rows_say_what_the_design_promises():
    model = unit_scale(Model(), inner="eager")
    model(x()).backward()
    found = us.unit_rows(model)
    assert found == rows(model)
    assert all(isinstance(row, UnitRow) for row in found)
    by_name = {row.name: row for row in found}
    assert len(by_name) == len(found)
    up = by_name["layers.0.up.linear"]
    assert up.op == "linear"
    assert up.reason is None
    assert 0.70 < up.rms / up.s < 1.42
    assert 0.70 < up.grad_rms * up.phi < 1.42
    assert {row.op for row in found} >= {"parameter", "input", "linear", "relu", "add", "mean"}
    assert by_name["layers.1.down.weight"].op == "parameter"
    assert by_name["x"].reason == by_name["offset"].reason == "input of the graph"


def test_every_tensor_is_in_range_after_a_step():
    model = unit_scale(Model(), inner="eager")
    model(x()).backward()
    inner = [row for row in rows(model) if row.reason is None]
    assert len(inner) > 10
    for row in inner:
        assert 0.70 < row.rms / row.s < 1.42, row
        assert row.grad_rms is None or 0.70 < row.grad_rms * row.phi < 1.42, row


def test_rows_before_the_first_step_are_none_and_of_a_plain_model_an_error():
    assert rows(unit_scale(Model(), inner="eager")) == []
    with pytest.raises(ValueError, match=r"units: this Model has no units; call us.unit_scale"):
        rows(Model())


def test_apply_recipe_has_no_units():
    model = apply_recipe(Model(), "fp8", inner="eager", remeasure="once")
    for _ in range(2):
        model(x()).backward()
    found = rows(model)
    assert all((row.s, row.phi) == (1.0, 1.0) for row in found)
    assert named(model)["layers.0.up.linear"].rms is not None


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("recipe", [None, "fp32-units", "fp8"])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_measure_leaves_gradients_and_random_numbers(recipe, with_gradients):
    model = Model()
    if with_gradients:
        model(x()).backward()
    if recipe is not None:
        unit_scale(model, recipe, inner="eager")
    before, state = gradients(model), torch.get_rng_state()
    found = {row.name: row for row in measure(model, x())}
    assert found["layers.0.up.linear"].rms > 1.0
    assert found["layers.0.up.linear"].grad_rms is not None
    assert torch.equal(torch.get_rng_state(), state)
    for now, then in zip(gradients(model), before, strict=True):
        assert (now is None) == (then is None)
        assert now is None or torch.equal(now, then)
    if recipe is None:
        assert_plain(model)


class Failing(Model):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the model's own error")


def test_measure_of_a_failing_model_leaves_everything_as_it_was():
    model = Failing()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="the model's own error"):
        measure(model, x())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert_plain(model)


def test_measured_takes_what_runs_inside():
    model = Model()
    with measured(model) as found:
        model(x()).backward()
        assert found == []
    assert {row.name for row in found} >= {"x", "layers.0.up.linear", "layers.1.down.bias"}
    assert_plain(model)
    unit_scale(model, inner="eager")


def test_measure_of_a_scaled_model_does_not_count_as_a_step_of_the_schedule_twice():
    model = unit_scale(Model(), "fp32-units", inner="eager", remeasure="never")
    measure(model, x())
    before = named(model)["layers.0.up.linear"].rms
    model(x() * 100).backward()
    assert named(model)["layers.0.up.linear"].rms == before


def test_activations_of_the_recipe_and_of_the_argument_are_one_option():
    recipe = Recipe(name="mine", rules=uniform(None, None, scale=Unit()), activations=FP16)
    for model in (unit_scale(Model(), recipe), unit_scale(Model(), "fp16", activations=FP16)):
        assert model.__dict__["unitscale_session"].recipe.activations == FP16


def test_inner_may_be_a_callable():
    seen: list[Any] = []

    def inner(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(inputs)
        return module.forward

    plain, model = Model(), Model()
    model.load_state_dict(plain.state_dict())
    unit_scale(model, "fp32-units", inner=inner)
    for _ in range(2):
        assert torch.equal(model(x()), plain(x()))
    (inputs,) = seen
    assert inputs[0].dim() == 1  # the vector of factors comes first
