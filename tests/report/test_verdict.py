"""The verdict in words: counts, the worst tensor, faults with layer and step."""

from typing import Any

import pytest

from report.sample import recording_rows
from unitscale.recipes import RECIPES, parse
from unitscale.report import group, judge
from unitscale.report.recording import Series, thin
from unitscale.report.verdict import latest_state


def test_healthy_run_has_nothing_to_name() -> None:
    verdict = judge(group(recording_rows(steps=[0, 50])))
    assert verdict.paragraph == (
        "None of 8 operands loses more than 1 % of its values in E4M3FN. "
        "None of 4 operands loses more than 1 % of its values in E5M2."
    )


def test_fault_is_named_with_layer_and_step() -> None:
    verdict = judge(group(recording_rows(fault_at=100, layer=2, steps=range(0, 300, 50))))
    assert verdict.sentences[0] == (
        "At step 100 the gradients of layers.2 fell by 2^20 within one sample (since step 50); "
        "the largest change is in layers.2.linear (gradient), one of 1 tensor that moved."
    )
    assert verdict.sentences[2] == (
        "1 of 4 operands loses more than 1 % of its values in E5M2; worst: layers.2.linear "
        "(gradient), 100 % flushed to zero at step 100."
    )


def test_single_step_is_not_named() -> None:
    rows = recording_rows(fault_at=0, layer=1, steps=[0])
    assert judge(group(rows)).sentences[1] == (
        "1 of 4 operands loses more than 1 % of its values in E5M2; worst: layers.1.linear "
        "(gradient), 100 % flushed to zero."
    )


def test_held_tensors_are_counted_once_each_before_and_after_units() -> None:
    held = {"value": 0, "gradient": 10}
    header, *rows = recording_rows(steps=[0, 50])
    rows = [row | {"held_log2": held[row["direction"]]} for row in rows]
    assert judge(group([header, *rows])).sentences[-1] == (
        "8 of 16 tensors have an RMS between 1/2 and 2 as the model computes them, and 16 as they "
        "are held at their units."
    )


def test_drift_of_eight_octaves_is_training_and_of_ten_a_fault() -> None:
    header, *rows = recording_rows(steps=[0, 50])
    for octaves, count in ((8, 0), (10, 1)):
        moved = [
            row | {"rms": row["rms"] * 2.0**octaves}
            if row["step"] == 50 and row["name"] == "layers.1.add" and row["direction"] == "value"
            else row
            for row in rows
        ]
        assert len(judge(group([header, *moved])).jumps) == count


def losing(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A row like another, which loses all of its values."""
    formats = {name: shares | {"flushed": 1.0} for name, shares in row["formats"].items()}
    return row | {"formats": formats} | changes


@pytest.mark.parametrize(
    "other",
    [
        {"name": "w:exp_avg_sq", "op": "moment", "direction": "state"},
        {"name": "layers.0.bias", "op": "parameter"},
        {"name": "norm.weight", "op": "parameter"},
        {"name": "layers.0.weight", "op": "parameter", "direction": "gradient"},
        {"name": "layers.0.add", "op": "add", "direction": "gradient"},
    ],
)
def test_what_no_product_takes_is_not_counted(other: dict[str, Any]) -> None:
    rows = recording_rows(steps=[0])
    assert judge(group([*rows, losing(rows[1], **other)])).losses == []


@pytest.mark.parametrize(
    "other",
    [
        {"name": "layers.0.weight", "op": "parameter"},
        {"name": "layers.0.conv2d", "op": "conv2d", "direction": "gradient"},
        {"name": "layers.0.gelu", "op": "gelu"},
        {"name": "layers.0.bias", "op": "parameter", "operand": True},
    ],
)
def test_what_a_product_takes_is_counted(other: dict[str, Any]) -> None:
    rows = recording_rows(steps=[0])
    (loss,) = judge(group([*rows, losing(rows[1], **other)])).losses
    assert loss.series.name == other["name"]


def test_row_may_say_itself_that_it_is_not_rounded() -> None:
    rows = recording_rows(steps=[0])
    row = losing(rows[1], name="layers.0.gelu", op="gelu", operand=False)
    assert judge(group([*rows, row])).losses == []


def test_bias_that_grows_from_zero_and_moments_are_no_fault() -> None:
    rows = recording_rows(steps=[0, 50])
    for other in ({"name": "layers.0.bias", "op": "parameter"}, {"direction": "state"}):
        small, large = (rows[1] | other | {"step": s, "rms": r} for s, r in ((0, 1e-9), (50, 1.0)))
        assert judge(group([*rows, small, large])).jumps == []
    small, large = (rows[1] | {"name": "x", "step": s, "rms": r} for s, r in ((0, 1e-9), (50, 1.0)))
    assert len(judge(group([*rows, small, large])).jumps) == 1


def test_recipe_that_rounds_nothing_loses_nothing() -> None:
    rows = recording_rows(fault_at=0, layer=1, steps=[0])
    verdict = judge(group(rows, recipe="fp32"))
    assert verdict.losses == []
    assert verdict.paragraph.startswith(
        "fp32 rounds no product. None of 8 operands would lose more than 1 % of its values in "
        "E4M3FN. 1 of 4 operands would lose more than 1 % of its values in E5M2; worst: "
        "layers.1.linear (gradient), 100 % flushed to zero."
    )
    assert len(judge(group(rows, recipe="fp8")).losses) == 1
    assert len(judge(group(rows, recipe="of another version")).losses) == 1


def test_each_direction_is_judged_in_the_format_of_the_recipe() -> None:
    rows = recording_rows(steps=[0])
    directions = ("value", "gradient")
    for recipe, formats in (
        ("fp8", ["E4M3FN", "E5M2"]),
        ("fp8-e4m3", ["E4M3FN", "E4M3FN"]),
        ("fp16", ["E4M3FN", "E5M2"]),  # of which the rows have no shares
    ):
        assert [group(rows, recipe=recipe).format_for(d) for d in directions] == formats


def blank_rows(steps: dict[int, dict[str, float]], **other: Any) -> list[dict[str, Any]]:
    """Rows of a model of two layers; at each step the data fractions of some tensors."""
    return [
        row | {"data_fraction": steps[row["step"]].get(Series(**key_of(row)).label, 1.0)} | other
        if "name" in row
        else row
        for row in recording_rows(steps=steps, layers=2)
    ]


def key_of(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("name", "op", "direction")}


def test_run_that_went_nan_is_named_with_tensor_and_step() -> None:
    lost = {"layers.0.add": 0.25, "layers.1.linear": 0.0, "layers.1.add": 0.0}
    verdict = judge(group(blank_rows({0: {}, 50: {}, 100: lost, 150: lost})))
    assert verdict.blank is not None
    assert verdict.sentences[0] == (
        "At step 100 2 tensors of 8 hold no data: all is NaN, infinite, or beyond 2^64. The first "
        "in the order of computation is layers.0.add, which has 25 % of its data left (it had data "
        "at step 50)."
    )


def test_backward_that_goes_nan_begins_at_the_end() -> None:
    lost = {"layers.0.linear (gradient)": 0.0, "layers.1.linear (gradient)": 0.0}
    blank = judge(group(blank_rows({0: {}, 50: lost}))).blank
    assert blank is not None
    assert (blank.series.label, blank.step, blank.count) == ("layers.1.linear (gradient)", 50, 2)


def test_run_that_is_nan_from_the_first_sample_on_is_named() -> None:
    lost = {"layers.1.linear": 0.0, "layers.1.add": 0.0}
    blank = judge(group(blank_rows({0: lost}))).blank
    assert blank is not None
    assert (blank.series.label, blank.step, blank.before) == ("layers.1.linear", 0, None)


@pytest.mark.parametrize(
    "steps",
    [
        {0: {}, 50: {}},
        {0: {"layers.0.add": 0.5}, 50: {"layers.0.add": 0.4}},  # a mask's infinities
        {0: {"layers.0.add": 0.0}, 50: {"layers.0.add": 0.0}},  # an empty tensor
    ],
)
def test_masks_and_empty_tensors_are_no_nan(steps: dict[int, dict[str, float]]) -> None:
    assert judge(group(blank_rows(steps))).blank is None


def test_layer_is_the_numbered_module() -> None:
    names = {
        "trunk.3.body.linear#2": "trunk.3",
        "layers.0.attn.weight:exp_avg": "layers.0",
        "norm.layer_norm": "norm",
        "cross_entropy": "cross_entropy",
        "embedding.weight": "embedding",
    }
    assert {name: Series(name, "", "value").layer for name in names} == names


def test_thinning_keeps_ends_and_what_is_wanted() -> None:
    recording = thin(group(recording_rows(steps=range(100))), 5, keep=[41])
    assert recording.steps == [0, 25, 41, 50, 74, 99]


def test_state_of_a_step_names_the_worst_tensor() -> None:
    rows = recording_rows(fault_at=0, layer=1, steps=[0])[1:]
    assert latest_state(rows, ["E4M3FN", "E5M2"]) == {
        "worst": "layers.1.linear (gradient)",
        "worst_lost_fraction": 1.0,
        "losing_fraction": 1 / 12,
    }
    assert latest_state(rows, ["E4M3FN", "E5M2"], RECIPES["fp8"]) is not None
    assert latest_state(rows, ["E4M3FN", "E5M2"], RECIPES["fp32"]) is None
    assert latest_state([], ["E5M2"]) is None


def rounded(rows: list[dict[str, Any]], values: str, gradients: str) -> list[dict[str, Any]]:
    """Rows of which every linear and its gradient are rounded so, and lose all as they are."""
    texts = {"value": values, "gradient": gradients}
    return [
        losing(row, operand=True, rounded_as=texts[row["direction"]])
        if row.get("op") == "linear"
        else row | ({"operand": False} if "name" in row else {})
        for row in rows
    ]


OWN = ["fp8-current", "fp8-delayed", "fp8-rowwise", "fp8-block", "mxfp8", "nvfp4", "nvfp4-units"]


@pytest.mark.parametrize("says_itself", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_scale_that_is_computed_gets_no_verdict_by_shares(name: str, says_itself: bool) -> None:
    recipe = RECIPES[name]
    rows = rounded(recording_rows(steps=[0, 50]), str(recipe.value), str(recipe.gradient))
    if not says_itself:  # a recording of a version before, whose recipe its folder knows
        rows = [{k: v for k, v in row.items() if k != "rounded_as"} for row in rows]
    verdict = judge(group(rows, recipe=name))
    assert verdict.losses == []
    assert verdict.paragraph == (
        f"{name} computes the scales of 8 operands from their values, so what is lost at those "
        f"scales is not in these rows; record with record(what_if=[{name!r}]) or run `unitscale "
        f"analyse MODULE:FACTORY --what-if {name}` to see it."
    )
    state = latest_state(rows[1:], ["E4M3FN", "E5M2"], recipe)
    assert state is not None
    assert list(state) == ["not_judged"]
    assert f"--what-if {name}" in str(state["not_judged"])


@pytest.mark.parametrize("name", ["fp8", "fp8-none", "fp8-cscale", "mus"])
def test_scale_that_is_given_is_judged(name: str) -> None:
    recipe = RECIPES[name]
    rows = rounded(recording_rows(steps=[0]), str(recipe.value), str(recipe.gradient))
    assert len(judge(group(rows, recipe=name)).losses) == 8
    state = latest_state(rows[1:], ["E4M3FN", "E5M2"], recipe)
    assert state is not None
    assert state["losing_fraction"] == 1.0


def test_gradient_is_judged_in_the_format_that_its_row_names() -> None:
    rows = rounded(recording_rows(steps=[0]), "E4M3FN unit", "E4M3FN unit")
    losses = judge(group(rows)).losses  # of record(), whose caller says no recipe
    assert {loss.format for loss in losses} == {"E4M3FN"}
    assert {loss.series.direction for loss in losses} == {"value", "gradient"}


def test_recipe_of_ones_own_gets_no_verdict_by_shares_either() -> None:
    rows = rounded(recording_rows(steps=[0]), "MX_E4M3FN current floor 1x32", "E5M2 current")
    verdict = judge(group(rows, recipe="mine"))
    assert verdict.losses == []
    assert "mine computes the scales of 8 operands" in verdict.sentences[0]
    assert "record(what_if=[RECIPE])" in verdict.sentences[0]


def what_if_row(product: str, recipe: str, flushed: float) -> dict[str, Any]:
    """A row of what a recipe makes of a product."""
    operands = {"output.input": [30.0, flushed, 0.0], "output.weight": [30.0, 0.0, 0.0]}
    numbers = {"errors": {"output": 0.01}, "operands": operands}
    return {
        "what_if": product,
        "formats": {},
        "step": 0,
        "op": "linear",
        "module": product,
        "macs": 8,
        "recipes": {recipe: numbers},
    }


def test_what_if_of_the_own_recipe_is_the_verdict() -> None:
    rows = rounded(recording_rows(steps=[0]), "NVFP4 current", "NVFP4 current stochastic")
    asked = [what_if_row("layers.0", "nvfp4", 0.125), what_if_row("layers.1", "nvfp4", 0.001)]
    assert judge(group([*rows, *asked], recipe="nvfp4")).sentences[0] == (
        "At the scales that nvfp4 computes, 1 of 2 products loses more than 1 % of the values of "
        "an operand; worst: layers.0, up to 12 % flushed to zero."
    )
    healthy = judge(group([*rows, asked[1]], recipe="nvfp4")).sentences[0]
    assert healthy.endswith("none of 1 product loses more than 1 % of the values of an operand.")
    own = [*rows, what_if_row("layers.0", "mine", 0.125)]
    assert judge(group(own, recipe="mine")).sentences[0].startswith("At the scales that mine comp")
    other = [what_if_row("layers.0", "mxfp8", 0.125)]
    assert "is not in these rows" in judge(group([*rows, *other], recipe="nvfp4")).sentences[0]


def test_recipe_with_a_number_in_its_name_is_known() -> None:
    rows = recording_rows(steps=[0])
    assert group(rows, recipe="fp8-cscale(3)").recipe == parse("fp8-cscale(3)")
    assert group(rows, recipe="mine").recipe is None
