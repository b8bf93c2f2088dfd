"""The recipes by name: what each of them is, to the last operand."""

from pathlib import Path

import pytest

from unitscale.recipes import (
    RECIPES,
    RIVALS,
    STATIC_LOSS_SCALE,
    TRUE_FP16,
    Recipe,
    cscale,
    parse,
    uniform,
)

E4, E5, E4Z, E5Z = "E4M3FN", "E5M2", "E4M3FNUZ", "E5M2FNUZ"
AMAX, BELOW = "current rceil", "current rceil margin=3"
ROW, TENSOR = "E4M3FN current rceil row", "E4M3FN current rceil"
BLOCK, TILE = "E4M3FN current 1x128", "E4M3FN current 128x128"


def alike(value: str, gradient: str, weight: str | None = None) -> tuple[str, ...]:
    """The six operands where each tensor is taken alike by both of its products."""
    weight = weight or value
    return (value, weight, gradient, weight, gradient, value)


def nvfp4(source: str) -> tuple[str, ...]:
    """NVFP4 whole: what is right on average, and what is turned, in each product."""
    x = f"NVFP4 {source} 1x16"
    weight = f"NVFP4 {source} 16x16"
    noisy = f"{x} stochastic"
    turned = "hadamard=16"
    return (x, weight, noisy, weight, f"{noisy} {turned}", f"{x} {turned}")


def mx(fmt: str) -> dict[str, tuple[str, ...]]:
    """The four rules by the suffix of the name."""
    return {
        suffix: alike(text, text)
        for suffix, rule in (("", "floor"), *((f"-{r}", r) for r in ("rceil", "ceil", "even")))
        for text in [f"{fmt} current {rule} 1x32"]
    }


EVERY, LINEAR, LAYER = "*", "linear", "layer"
# The names that the command line promises: the ops of the main rule, its six operands in the order
# of `Gemm.operands`, the format of results, the loss scale.
CONTRACT = {
    "fp32": (None, None, None, None),
    "bf16": (EVERY, alike("BF16 cast", "BF16 cast"), "BF16", None),
    "fp16-none": (EVERY, alike("FP16 cast", "FP16 cast"), "FP16", None),
    "fp16-loss": (EVERY, alike("FP16 cast", "FP16 cast"), "FP16", 2048.0),
    "fp16-loss-dynamic": (EVERY, alike("FP16 cast", "FP16 cast"), "FP16", "dynamic"),
    "fp8-none": (EVERY, alike(f"{E4} cast", f"{E5} cast"), None, None),
    "fp8-bf16-none": (EVERY, alike(f"{E4} cast", f"{E5} cast"), "BF16", None),
    "fp8-e4m3-none": (EVERY, alike(f"{E4} cast", f"{E4} cast"), None, None),
    "fp8-current": (EVERY, alike(f"{E4} current", f"{E5} current"), None, None),
    "fp8-e4m3-current": (EVERY, alike(f"{E4} current", f"{E4} current"), None, None),
    "fp8-current-pow2": (EVERY, alike(f"{E4} {AMAX}", f"{E5} {AMAX}"), None, None),
    "fp8-delayed": (EVERY, alike(f"{E4} delayed", f"{E5} delayed"), None, None),
    "coat": (LINEAR, alike(f"{E4} current", f"{E5} current"), None, None),
    "fp8-amax": (LINEAR, alike(f"{E4} {AMAX}", f"{E5} {BELOW}"), None, None),
    "fp8-amax-fnuz": (LINEAR, alike(f"{E4Z} {AMAX}", f"{E5Z} {BELOW}"), None, None),
    "fp8-cscale": (LINEAR, alike(f"{E4} constant", f"{E5} constant log2=3"), None, None),
    "fp8-cscale-fnuz": (LINEAR, alike(f"{E4Z} constant", f"{E5Z} constant log2=3"), None, None),
    "fp8-fog": (EVERY, alike(f"{E4} delayed", f"{E5} delayed"), None, None),
    "fp8-rowwise": (LINEAR, alike(ROW, ROW), None, None),
    "fp8-rowwise-hp": (LINEAR, (ROW, ROW, ROW, TENSOR, "BF16 cast", "BF16 cast"), None, None),
    "fp8-block": (LINEAR, alike(BLOCK, BLOCK, TILE), None, None),
    **{f"mxfp8{end}": (LINEAR, six, None, None) for end, six in mx("MX_E4M3FN").items()},
    **{f"mxfp6{end}": (LINEAR, six, None, None) for end, six in mx("MX_E3M2FN").items()},
    **{f"mxfp4{end}": (LINEAR, six, None, None) for end, six in mx("MX_E2M1FN").items()},
    "nvfp4": (LINEAR, nvfp4("current"), None, None),
    "fp32-units": (EVERY, alike("as is unit", "as is unit"), None, None),
    "bf16-units": (EVERY, alike("BF16 unit", "BF16 unit"), "BF16", None),
    "fp16": (EVERY, alike("FP16 unit", "FP16 unit"), "FP16", None),
    "fp8": (EVERY, alike(f"{E4} unit", f"{E5} unit"), None, None),
    "fp8-bf16": (EVERY, alike(f"{E4} unit", f"{E5} unit"), "BF16", None),
    "fp8-e4m3": (EVERY, alike(f"{E4} unit", f"{E4} unit"), None, None),
    "fp8-serve": (LAYER, alike(f"{E4} unit", f"{E5} unit"), None, None),
    "nvfp4-units": (LINEAR, nvfp4("unit"), None, None),
    "mus": (LINEAR, alike(f"{E4} unit", f"{E5} unit"), None, None),
}


def test_names_are_those_of_the_command_line():
    assert list(RECIPES) == list(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_recipe_is_what_its_name_says(name):
    recipe = RECIPES[name]
    op, six, results, loss_scale = CONTRACT[name]
    assert recipe.name == name
    assert recipe.loss_scale == loss_scale
    assert recipe.activations is None
    assert str(recipe.saved) == ("E4M3FN current 1x16" if name == "coat" else "None")
    assert (recipe.skip, recipe.executor) == ((), "auto")
    if op is None:
        assert recipe.rules == ()
        return
    *before, rule = recipe.rules
    assert (rule.path, rule.op) == ("*", op)
    assert tuple(map(str, rule.gemm.operands)) == six
    assert (rule.gemm.results and rule.gemm.results.name) == results
    assert len(before) == (name == "mus")


def test_serve_spares_heads_and_routers_and_joins_what_servers_join():
    recipe = RECIPES["fp8-serve"]
    assert {"*lm_head", "*.gate", "*.experts", "*classifier"} <= set(recipe.spare)
    assert {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")} <= set(recipe.fused)
    assert "lm_head" in str(recipe)
    assert "gate_proj, up_proj" in str(recipe)
    assert all((r.spare, r.fused) == ((), ()) for r in RECIPES.values() if r is not recipe)


def test_coat_says_what_it_holds_between_products():
    line = "  held for backward outside of products: E4M3FN current 1x16"
    assert line in str(RECIPES["coat"]).splitlines()
    assert not any("held for backward" in str(r) for r in RECIPES.values() if r.saved is None)


def test_mus_keeps_the_readout_in_bf16():
    readout, _ = RECIPES["mus"].rules
    assert (readout.path, readout.op) == ("*", "readout")
    assert tuple(map(str, readout.gemm.operands)) == ("BF16 cast",) * 6


@pytest.mark.parametrize("name", CONTRACT)
def test_each_recipe_says_who_uses_it_and_where_it_comes_from(name):
    recipe = RECIPES[name]
    assert recipe.users
    assert recipe.source or name.endswith("-none") or name in ("fp32", "fp8-e4m3-current")


def test_loss_scale_is_that_of_the_paper():
    assert STATIC_LOSS_SCALE == 2048.0


@pytest.mark.parametrize("name", CONTRACT)
def test_units_are_those_of_the_recipes_that_say_so(name):
    six = CONTRACT[name][1] or ()
    assert parse(name).unit_scaled == any(" unit" in text for text in six)


@pytest.mark.parametrize("name", CONTRACT)
def test_only_delayed_recipes_need_a_history(name):
    assert parse(name).is_delayed == (name in ("fp8-delayed", "fp8-fog"))


@pytest.mark.parametrize("bias", [0, 4, -7])
def test_the_bias_of_cscale_is_minus_the_exponent_of_the_scale(bias):
    """Data is `x * 2**bias`, of a gradient `2**(bias - 3)`."""
    recipe = cscale(bias)
    assert recipe.value.scale.log2 == -bias
    assert recipe.gradient.scale.log2 == 3 - bias
    assert recipe.name == ("fp8-cscale" if bias == 0 else f"fp8-cscale({bias})")


def test_parse_gives_a_recipe_back_as_it_is():
    recipe = Recipe(name="mine", rules=uniform(None, None))
    assert parse(recipe) is recipe
    assert parse("fp8") is RECIPES["fp8"]


@pytest.mark.parametrize(
    ("wrong", "near"), [("fp8-e4m", "fp8-e4m3"), ("FP8-NONE", None), ("mxfp-8", "mxfp8")]
)
def test_parse_refuses_an_unknown_name_and_suggests_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"unknown recipe '{wrong}'") as error:
        parse(wrong)
    message = str(error.value)
    assert all(name in message for name in CONTRACT)
    assert message.endswith(f"Did you mean {near!r}?" if near else f"{list(TRUE_FP16)[-1]}.")


@pytest.mark.parametrize("name", CONTRACT)
def test_a_recipe_prints_its_products(name):
    recipe = RECIPES[name]
    shown = str(recipe)
    assert shown.startswith(f"{name}: {recipe.users}")
    for rule in recipe.rules:
        for product, left, right, _ in rule.gemm.rows():
            assert f"{product:<12} {left} @ {right}" in shown
    assert ("rounds nothing" in shown) == (not recipe.rules)


def test_page_of_results_names_the_rivals_that_were_not_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    section = page.split("## The rivals, 200 steps")[1].split("\n## ")[0]
    assert [name for name in RIVALS if f"`{name}`" not in section] == []
