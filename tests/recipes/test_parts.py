"""Each part of a recipe that is of another type is refused at once, by name."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import pytest

from unitscale.formats import E4M3FN, E5M2
from unitscale.recipes import (
    Constant,
    Current,
    Delayed,
    Operand,
    RandomHadamard,
    Recipe,
    Throughout,
    uniform,
)

FP8 = uniform(E4M3FN, E5M2)

WRONG = (None, 1, "x", 1.5, [1], {"x": 1}, object(), b"x", True, ("x", 1), [["a"]], lambda: 0)


def refusal(made: Callable[[], object]) -> str | None:
    """What is said against a value; None if it is taken. Other errors pass."""
    try:
        made()
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def assert_named(text: str, name: str, value: object) -> None:
    """An error names the part and the value that it got, in one line."""
    # Lists are made tuples before they are looked at.
    shown = [value]
    if isinstance(value, list):
        shown += [tuple(value), tuple(tuple(x) if isinstance(x, list) else x for x in value)]
    assert any(f" {name} is {x!r}" in text for x in shown), (name, value, text)
    assert "\n" not in text


def test_the_check_of_messages_fails_on_others():
    with pytest.raises(AssertionError):
        assert_named("'NoneType' object is not iterable", "fused", None)
    with pytest.raises(AssertionError):
        assert_named("Recipe: fused is None\nTraceback", "fused", None)


@pytest.mark.parametrize(
    "made", [Recipe(name="fp8", rules=FP8), FP8[0], FP8[0].gemm], ids=lambda x: type(x).__name__
)
def test_a_part_of_another_type_is_refused_in_one_line_that_names_it(made):
    taken = 0
    for part in fields(made):
        for value in WRONG:
            text = refusal(partial(replace, made, **{part.name: value}))
            taken += text is None
            if text is not None:
                assert_named(text, part.name, value)
    # A name may be any text, a pattern too; half of the parts may be None.
    assert taken <= 1.5 * len(fields(made))


@pytest.mark.parametrize("kind", [Operand, Current, Delayed, Constant, RandomHadamard, Throughout])
def test_a_part_of_an_operand_of_another_type_is_refused_in_one_line_that_names_it(kind):
    for part in fields(kind):
        texts = {repr(value): refusal(partial(kind, **{part.name: value})) for value in WRONG}
        for value in WRONG:
            if (text := texts[repr(value)]) is not None:
                assert_named(text, part.name, value)
        assert texts["'x'"] is not None


def test_an_empty_name_is_refused():
    with pytest.raises(ValueError, match="name is ''; expected a word"):
        Recipe(name="")


def test_lists_of_names_become_tuples_so_that_a_recipe_stays_a_value():
    recipe = Recipe(name="mine", rules=FP8, fused=[["a", "b"], ("c", "d")])
    assert recipe.fused == (("a", "b"), ("c", "d"))
    assert hash(recipe) == hash(Recipe(name="mine", rules=FP8, fused=recipe.fused))
