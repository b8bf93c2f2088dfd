"""What is asked for beside a recipe holds under the next one too, and nothing of it is silent."""

import warnings
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from unitscale import nn as unn
from unitscale.formats import E4M3FN, FP16
from unitscale.recipes import Recipe, Rule, uniform
from unitscale.units import apply_recipe, set_recipe, unit_scale
from unitscale.units.capturing import without_fused_encoders
from unitscale.units.forward import session_of


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(self.norm(x)))).square().mean()


def kept(model: nn.Module) -> set[str]:
    """The products in full precision after one step."""
    model(torch.randn(4, 8)).backward()
    return {product.name for product in us.summary(model).products if product.why is not None}


def test_skip_and_formats_hold_under_the_next_recipe() -> None:
    model = unit_scale(Model(), "fp8", skip=["down"], activations=FP16, saved=E4M3FN, inner="eager")
    assert kept(model) == {"down.linear"}
    set_recipe(model, "fp8-e4m3")
    assert kept(model) == {"down.linear"}
    recipe = session_of(model).recipe
    assert (recipe.name, recipe.activations, recipe.saved) == ("fp8-e4m3", FP16, E4M3FN)
    set_recipe(model, "fp8", skip=lambda path, module: path == "up")
    assert kept(model) == {"up.linear"}
    set_recipe(model, "fp8", skip=[])
    assert kept(model) == set()


def test_a_pattern_that_is_refused_changes_nothing() -> None:
    model = unit_scale(Model(), "fp8", skip=["down"], inner="eager")
    with pytest.raises(ValueError, match="matches no module"):
        set_recipe(model, "fp8-e4m3", skip=["nowhere"])
    assert session_of(model).recipe.name == "fp8"
    assert kept(model) == {"down.linear"}


def test_the_root_may_be_skipped_where_nothing_is_rounded_anyway() -> None:
    model = apply_recipe(Model(), "fp32", skip=["*"], inner="eager")
    assert kept(model) == {"up.linear", "down.linear"}
    with pytest.raises(ValueError, match=r"set_recipe: skip='\*' matches the Model itself"):
        set_recipe(model, "mxfp8")
    assert session_of(model).recipe.name == "fp32"


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ([""], "skip='' matches the Model itself, whose path is ''"),
        (["down", "*"], r"skip='\*' matches the Model itself"),
        (lambda path, module: True, "the function skip is true for every module of this Model"),
        (lambda path, module: not path.startswith("layers."), "true for every module"),
    ],
)
@pytest.mark.parametrize("scaler", [unit_scale, apply_recipe])
def test_a_skip_of_everything_is_refused(scaler, skip, message) -> None:
    model = Model()
    with pytest.raises(ValueError, match=message):
        scaler(model, "mxfp8", skip=skip)
    assert session_of(model) is None


@pytest.mark.filterwarnings("ignore:.*keeps no product of this call")
@pytest.mark.parametrize("skip", [["up", "down"], ["norm", "up", "down"]])
def test_patterns_of_all_products_are_warned_of(skip) -> None:
    model = apply_recipe(Model(), "mxfp8", skip=skip, inner="eager")
    with pytest.warns(UserWarning, match=r"skip='down', 'up' keeps every product"):
        model(torch.randn(4, 8))
    set_recipe(model, "mxfp8", skip=["up"])
    assert kept(model) == {"up.linear"}


def test_products_of_the_models_own_forward_may_be_all_that_is_rounded() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            return (x @ x.mT).square().mean()

    assert kept(apply_recipe(Attending(), "fp8-current", skip=["up"])) == {"up.linear"}


def test_a_function_is_not_asked_of_the_model_itself() -> None:
    asked: list[str] = []

    def skip(path: str, module: nn.Module) -> bool:
        asked.append(path)
        return path != "up"

    assert kept(apply_recipe(Model(), "fp8-current", skip=skip)) == {"down.linear"}
    assert asked == ["norm", "up", "down"]


@pytest.mark.parametrize(
    "found", ["no", None, 1, np.bool_(True), torch.tensor(True), []], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("scaler", [unit_scale, apply_recipe])
def test_a_function_that_gives_neither_true_nor_false_is_refused(scaler, found) -> None:
    model = Model()
    with pytest.raises(
        TypeError, match=rf"of type (numpy\.|torch\.)?{type(found).__name__}, for 'norm'; expected"
    ):
        scaler(model, "fp8", skip=lambda path, module: found)
    assert session_of(model) is None


def test_a_rule_for_everything_before_those_that_round_is_refused() -> None:
    first = Rule(path="*", op="*", gemm=None)
    rounding = uniform(E4M3FN, E4M3FN)[0]
    late = replace(rounding, path="up")
    with pytest.raises(ValueError, match=r"its rule for path '\*' and op '\*' is before all"):
        apply_recipe(Model(), Recipe(name="mine", rules=(first, late)))
    assert kept(apply_recipe(Model(), Recipe(name="mine", rules=(late, first)))) == {"down.linear"}


def test_a_skip_that_keeps_nothing_is_warned_of() -> None:
    model = unit_scale(Model(), "fp8", skip=["norm", "up"], inner="eager")
    with pytest.warns(UserWarning, match=r"skip='norm' keeps no product"):
        assert kept(model) == {"up.linear"}
    model = unit_scale(Model(), "fp8", skip=lambda path, module: False, inner="eager")
    with pytest.warns(UserWarning, match=r"skip=the function keeps no product"):
        assert kept(model) == set()
    model = unit_scale(Model(), "fp8", skip=lambda path, module: path in ("norm", "up"))
    assert kept(model) == {"up.linear"}


@pytest.mark.parametrize("skip", [3, None, [2], nn.Linear])
def test_what_is_no_list_of_patterns_is_refused(skip) -> None:
    with pytest.raises(TypeError, match="unit_scale: skip"):
        unit_scale(Model(), "fp8", skip=skip)


@pytest.mark.parametrize("recipe", ["fp8", "fp8-e4m3", "nvfp4-units"])
def test_a_recipe_of_units_without_units_is_warned_of(recipe) -> None:
    with pytest.warns(UserWarning, match=r"rounds tensors at their units, and this Model has none"):
        apply_recipe(Model(), recipe)
    model = apply_recipe(Model(), "mxfp8")
    with pytest.warns(UserWarning, match=r"set_recipe: recipe .* rounds tensors at their units"):
        set_recipe(model, recipe)


def test_a_model_written_unit_scaled_has_them_and_a_cast_asks_for_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_recipe(nn.Sequential(unn.Linear(8, 8)), "fp8")
        apply_recipe(Model(), "fp8-none")
        unit_scale(Model(), "fp8")


def test_a_loss_scale_is_asked_for_at_a_switch_too() -> None:
    model = apply_recipe(Model(), "mxfp8")
    with pytest.warns(UserWarning, match="set_recipe: recipe 'fp16-loss' expects the loss times"):
        set_recipe(model, "fp16-loss")


def test_summary_says_that_nothing_is_rounded_now() -> None:
    model = unit_scale(Model(), "fp8", inner="eager")
    kept(model)
    with us.full_precision(model):
        assert "now in full precision" in str(us.summary(model))
    assert "now in full precision" not in str(us.summary(model))


def test_a_recipe_without_units_is_saved_with_its_schedule(tmp_path) -> None:
    model = apply_recipe(Model(), "mxfp8", inner="eager")
    kept(model)
    us.save_units(model, tmp_path / "units.json")
    other = apply_recipe(Model(), "mxfp8", inner="eager")
    us.load_units(other, tmp_path / "units.json")
    assert session_of(other).store.step == 1


def test_contexts_of_two_threads_leave_the_switch_of_fused_encoders_as_it_was() -> None:
    first = without_fused_encoders(rounds=True)
    first.__enter__()
    seen = []

    def second() -> None:
        with without_fused_encoders(rounds=True):
            first.__exit__(None, None, None)  # the first ends while the second is inside
            seen.append(torch.backends.mha.get_fastpath_enabled())

    thread = Thread(target=second)
    thread.start()
    thread.join()
    assert seen == [False]
    assert torch.backends.mha.get_fastpath_enabled()
