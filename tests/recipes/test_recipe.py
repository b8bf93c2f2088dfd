"""A recipe as data: rules, and the words of a version before them."""

import math
import pickle
import re
from dataclasses import FrozenInstanceError, replace

import pytest

from unitscale.formats import BF16, E4M3FN, E5M2, FP16
from unitscale.formats.catalogue import E8M0FNU
from unitscale.recipes import (
    RECIPES,
    Current,
    Gemm,
    Operand,
    Recipe,
    Rule,
    Unit,
    parse,
    uniform,
)

FP8 = uniform(E4M3FN, E5M2)


def test_recipe_is_frozen_and_takes_keywords_only():
    recipe = Recipe(name="mine")
    with pytest.raises(FrozenInstanceError):
        recipe.name = "yours"
    with pytest.raises(TypeError, match="positional"):
        Recipe("mine")


def test_recipe_is_a_value():
    one, other = (Recipe(name="mine", rules=FP8, source=where) for where in ("here", "there"))
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != Recipe(name="mine", rules=uniform(E4M3FN, E4M3FN))


def test_a_list_of_rules_is_a_tuple():
    assert Recipe(name="mine", rules=list(FP8), skip=["a"]) == Recipe(
        name="mine", rules=FP8, skip=("a",)
    )


REFUSED = {
    "executor is 'fp32'; expected one of auto, emulated": {"executor": "fp32"},
    "it has units and a loss scale of 2.0; with units gradients are at unit scale": {
        "rules": uniform(E4M3FN, E5M2, scale=Unit()),
        "loss_scale": 2.0,
    },
    "it has units and a loss scale of 'dynamic'": {
        "rules": uniform(None, None, scale=Unit()),
        "loss_scale": "dynamic",
    },
    "two rules for path '*' and op '*'; the second would never be used": {"rules": FP8 * 2},
    "two rules for path 'a.*' and op 'linear'": {
        "rules": (Rule("a.*", "linear"), *FP8, Rule("a.*", "linear", Gemm()))
    },
    "expected a tuple of Rule": {"rules": FP8[0]},
    "skip is 'head'; expected a tuple of patterns": {"skip": "head"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_contradicts_itself_is_refused_in_one_line(message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        Recipe(name="mine", **REFUSED[message])
    assert str(error.value).startswith("Recipe 'mine': ")
    assert "\n" not in str(error.value)


def test_rules_for_other_paths_or_ops_are_no_contradiction():
    gemm = FP8[0].gemm
    rules = (Rule("a.*", "linear"), Rule("a.*", "matmul", gemm), Rule("b.*", "linear", gemm), *FP8)
    assert Recipe(name="mine", rules=rules).rules == rules


def test_a_loss_scale_is_taken_without_units():
    assert Recipe(name="mine", rules=FP8, loss_scale="dynamic").loss_scale == "dynamic"


def test_unknown_words_are_refused():
    with pytest.raises(TypeError, match="Recipe 'mine': unexpected arguments formats, forwards"):
        Recipe(name="mine", forwards=E4M3FN, formats=1)


@pytest.mark.parametrize(
    ("rules", "rounds"),
    [
        ((), False),
        (uniform(None, None), False),
        (uniform(None, None, scale=Unit()), False),
        (uniform(E4M3FN, None), True),
        (uniform(None, E5M2), True),
        (uniform(None, None, FP16), True),
        ((Rule(op="linear", gemm=FP8[0].gemm),), True),
        ((Rule(op="linear"),), False),
    ],
)
def test_recipe_rounds_if_it_changes_a_product(rules, rounds):
    assert Recipe(name="mine", rules=rules).rounds == rounds
    assert not Recipe(name="mine", activations=FP16).rounds


def test_main_products_are_those_of_the_first_rule_for_all_paths():
    special, general = uniform(FP16, FP16)[0].gemm, FP8[0].gemm
    recipe = Recipe(name="mine", rules=(Rule("head", "linear", special), Rule(gemm=general)))
    assert recipe.main == general
    assert Recipe(name="mine", rules=(Rule("head", "linear", special),)).main == special
    assert Recipe(name="mine").main == Gemm()
    assert (recipe.value, recipe.gradient) == (Operand(E4M3FN), Operand(E5M2))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "fp32",
            [
                ("output", "as is", "as is", "as is"),
                ("grad_input", "as is", "as is", "as is"),
                ("grad_weight", "as is", "as is", "as is"),
            ],
        ),
        (
            "fp16",
            [
                ("output", "FP16 unit", "FP16 unit", "FP16"),
                ("grad_input", "FP16 unit", "FP16 unit", "FP16"),
                ("grad_weight", "FP16 unit", "FP16 unit", "FP16"),
            ],
        ),
        (
            "fp8",
            [
                ("output", "E4M3FN unit", "E4M3FN unit", "as is"),
                ("grad_input", "E5M2 unit", "E4M3FN unit", "as is"),
                ("grad_weight", "E5M2 unit", "E4M3FN unit", "as is"),
            ],
        ),
        (
            "nvfp4",
            [
                ("output", "NVFP4 current 1x16", "NVFP4 current 16x16", "as is"),
                ("grad_input", "NVFP4 current 1x16 stochastic", "NVFP4 current 16x16", "as is"),
                (
                    "grad_weight",
                    "NVFP4 current 1x16 stochastic hadamard=16",
                    "NVFP4 current 1x16 hadamard=16",
                    "as is",
                ),
            ],
        ),
    ],
)
def test_products_are_three_rows_of_left_right_and_result(name, rows):
    assert parse(name).products() == rows


def test_a_rule_in_full_precision_is_printed_as_such():
    recipe = Recipe(name="mine", rules=(Rule("lm_head", "linear"), *FP8), loss_scale=8.0)
    assert str(recipe).splitlines() == [
        "mine",
        "  lm_head linear: full precision",
        "  every product",
        "    output       E4M3FN cast @ E4M3FN cast",
        "    grad_input   E5M2 cast @ E4M3FN cast",
        "    grad_weight  E5M2 cast @ E4M3FN cast",
        "  loss scale: 8.0",
    ]


# The words of a version before rules.

OLD = pytest.mark.filterwarnings("ignore:Recipe.*of a version before rules:DeprecationWarning")


@pytest.mark.parametrize(
    ("words", "rules"),
    [
        ({"forward": E4M3FN, "backward": E5M2}, uniform(E4M3FN, E5M2)),
        ({"forward": E4M3FN}, uniform(E4M3FN, None)),
        ({"forward": FP16, "backward": FP16, "result": FP16}, uniform(FP16, FP16, FP16)),
        (
            {"forward": E4M3FN, "backward": E5M2, "source": "unit"},
            uniform(E4M3FN, E5M2, scale=Unit()),
        ),
        (
            {"forward": E4M3FN, "backward": E5M2, "source": "current"},
            uniform(E4M3FN, E5M2, scale=Current()),
        ),
        ({"source": "unit"}, uniform(None, None, scale=Unit())),
        ({"source": "current"}, uniform(None, None)),
    ],
    ids=str,
)
def test_old_words_make_the_same_recipe_with_a_warning(words, rules):
    with pytest.warns(DeprecationWarning, match="Recipe 'mine': forward, .* before rules") as seen:
        recipe = Recipe(name="mine", **words)
    assert recipe == Recipe(name="mine", rules=rules)
    assert recipe.source == ""
    assert [warning.filename for warning in seen] == [__file__]


def test_old_loss_scales_are_taken():
    with pytest.warns(DeprecationWarning, match="before rules"):
        recipe = Recipe(name="mine", forward=FP16, source="loss", loss_scale=8.0)
    assert recipe.loss_scale == 8.0
    assert recipe.rules == uniform(FP16, None)


def test_new_words_give_no_warning():
    Recipe(name="mine", rules=FP8, source="a paper")  # a warning would be an error here


@OLD
@pytest.mark.parametrize(
    ("source", "loss_scale"), [("none", 2.0), ("unit", "dynamic"), ("current", 1.0), ("loss", None)]
)
def test_an_old_loss_scale_goes_with_its_source_and_with_no_other(source, loss_scale):
    with pytest.raises(ValueError, match=r"a loss scale goes with source='loss'") as error:
        Recipe(name="mine", source=source, loss_scale=loss_scale)
    assert f"source is {source!r} and loss_scale is {loss_scale!r}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("fp8", "forward", E4M3FN),
        ("fp8", "backward", E5M2),
        ("fp8", "result", None),
        ("fp8-bf16", "result", BF16),
        ("fp32", "forward", None),
    ],
)
def test_old_attributes_are_read_with_a_warning(name, word, value):
    with pytest.warns(DeprecationWarning, match=f"Recipe.{word} is .* read recipe") as seen:
        assert getattr(RECIPES[name], word) == value
    assert [warning.filename for warning in seen] == [__file__]


def test_an_attribute_that_never_was_is_none_now():
    with pytest.raises(AttributeError, match="'Recipe' object has no attribute 'forwards'"):
        _ = RECIPES["fp8"].forwards


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("fp8", {"backward": E4M3FN}, "fp8-e4m3"),
        ("fp8", {"result": BF16}, "fp8-bf16"),
        ("fp8-none", {"source": "unit"}, "fp8"),
        ("fp8", {"source": "current"}, "fp8-current"),
        ("fp32", {"forward": E4M3FN, "backward": E5M2}, "fp8-none"),
    ],
)
def test_replace_takes_old_words(name, words, expected):
    with pytest.warns(DeprecationWarning, match="before rules") as seen:
        changed = replace(RECIPES[name], **words)
    assert changed.rules == RECIPES[expected].rules
    assert [warning.filename for warning in seen] == [__file__]


@OLD
def test_replace_with_old_words_keeps_the_rest_of_a_rule():
    """The op that it is for, and the margin of each scale."""
    changed = replace(RECIPES["fp8-amax"], backward=E4M3FN)
    (rule,) = changed.rules
    assert rule.op == "linear"
    assert str(rule.gemm.grad_input[0]) == "E4M3FN current rceil margin=3"
    (rule,) = replace(RECIPES["mxfp8"], result=BF16).rules
    assert (rule.op, rule.gemm.results) == ("linear", BF16)
    assert rule.gemm.output == RECIPES["mxfp8"].main.output


@OLD
@pytest.mark.parametrize("word", ["forward", "backward"])
def test_replace_with_old_words_is_refused_where_they_do_not_say_enough(word):
    with pytest.raises(ValueError, match=r"for one scale a tensor.*MX_E4M3FN.*write its rules"):
        replace(RECIPES["mxfp8"], **{word: E5M2})
    with pytest.raises(ValueError, match="give rules, or forward, backward and result, not both"):
        replace(RECIPES["mus"], **{word: E5M2})


def test_replace_with_new_words_gives_no_warning():
    assert replace(RECIPES["fp8"], name="mine").rules == RECIPES["fp8"].rules


WRONG_PARTS = {
    "loss_scale is nan; expected a positive number, 'dynamic' or None": {"loss_scale": math.nan},
    "loss_scale is inf; expected": {"loss_scale": math.inf},
    "loss_scale is -1; expected": {"loss_scale": -1},
    "loss_scale is 0; expected": {"loss_scale": 0},
    "loss_scale is True; expected": {"loss_scale": True},
    "loss_scale is 'static'; expected": {"loss_scale": "static"},
    "activations is 'FP16'; expected a FloatFormat, such as": {"activations": "FP16"},
    "saved is <class 'float'>; expected a FloatFormat": {"saved": float},
    "E8M0FNU has no sign or no zero": {"activations": E8M0FNU},
    "no format 'MINE' with these fields": {"saved": replace(E4M3FN, name="MINE")},
    "Recipe None: name is None; expected a string": {"name": None},
    "optimizer is 3; expected a name or None": {"optimizer": 3},
    "users is None; expected a string": {"users": None},
}


@pytest.mark.parametrize("message", WRONG_PARTS)
def test_a_part_that_would_fail_later_is_refused_at_once(message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        Recipe(**{"name": "mine", "rules": FP8, **WRONG_PARTS[message]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [None, "dynamic", 1, 8.0, 2.0**-3])
def test_loss_scales_that_are_taken(scale):
    assert Recipe(name="mine", rules=FP8, loss_scale=scale).loss_scale == scale


@pytest.mark.parametrize("name", [None, 3, b"fp8", ["fp8"]], ids=repr)
def test_a_recipe_is_asked_for_by_its_name(name):
    with pytest.raises(TypeError, match=re.escape(f"recipe is {name!r}; expected a Recipe")):
        parse(name)
