"""What is asked for beside a recipe holds under the next one too, and nothing of it is silent."""

import warnings
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from unitscale import nn as unn
from unitscale.formats import E4M3FN, FP16
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


@pytest.mark.parametrize("skip", [lambda path, module: True, [""], ["*"]])
def test_the_root_may_be_skipped(skip) -> None:
    assert kept(apply_recipe(Model(), "mxfp8", skip=skip, inner="eager")) == {
        "up.linear",
        "down.linear",
    }


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
