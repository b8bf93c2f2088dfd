"""Operands as data: what goes together, and a text that says it all."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitscale.formats import (
    BF16,
    BLOCK_FORMATS,
    E4M3FN,
    E5M2,
    FORMATS,
    FP16,
    MX_E4M3FN,
    NVFP4,
    FloatFormat,
)
from unitscale.formats.catalogue import E8M0FNU
from unitscale.recipes import (
    RECIPES,
    Cast,
    Constant,
    Current,
    Delayed,
    Operand,
    PerAxis,
    PerBlock,
    PerTensor,
    PerTile,
    RandomHadamard,
    Unit,
    parse_operand,
)

CATALOGUE = sorted({str(o) for r in RECIPES.values() for g in r.gemms for o in g.operands})


@pytest.mark.parametrize("text", CATALOGUE)
def test_every_operand_of_the_catalogue_is_its_text(text):
    found = {o for r in RECIPES.values() for g in r.gemms for o in g.operands if str(o) == text}
    assert found == {parse_operand(text)}


margins = st.integers(0, 64)
scales = st.one_of(
    st.just(Cast()),
    st.just(Unit()),
    st.builds(Constant, st.integers(-126, 127)),
    st.builds(Delayed, st.integers(1, 5000), margins, st.sampled_from(["max", "most_recent"])),
    st.builds(Current, st.sampled_from([None, "floor", "rceil", "ceil", "even"]), margins),
)
granularities = st.one_of(
    st.just(PerTensor()),
    st.just(PerAxis()),
    st.builds(PerBlock, st.integers(1, 300)),
    st.builds(PerTile, st.integers(1, 300), st.integers(1, 300)),
)
formats = st.sampled_from(
    [None, *(f for f in FORMATS.values() if f.is_signed and f.has_zero), *BLOCK_FORMATS.values()]
)


@given(
    formats,
    scales,
    granularities,
    st.sampled_from(["nearest", "stochastic"]),
    st.sampled_from([None, RandomHadamard(16), RandomHadamard(2)]),
)
def test_a_drawn_operand_is_its_text_or_refused(fmt, scale, granularity, rounding, transform):
    """What can be made at all can be told to a product, and nothing of it is lost on the way."""
    try:
        operand = Operand(fmt, scale, granularity, rounding, transform)
    except ValueError:
        return
    assert parse_operand(str(operand)) == operand
    assert operand.rounds == (fmt is not None)


def test_most_of_what_can_be_drawn_with_a_current_scale_is_an_operand():
    """The negative of the test above: it does not refuse everything."""
    some = (PerTensor(), PerAxis(), PerBlock(128), PerTile(128, 128), PerTile(16, 32))
    texts = {
        str(Operand(fmt, Current(rule), granularity, rounding, transform))
        for fmt, rule, granularity, rounding, transform in itertools.product(
            (E4M3FN, E5M2, FP16, BF16),
            (None, "floor", "rceil"),
            some,
            ("nearest", "stochastic"),
            (None, RandomHadamard()),
        )
    }
    assert len(texts) == 4 * 3 * len(some) * 2 * 2


def test_texts_are_short_and_complete():
    assert str(Operand()) == "as is"
    assert str(Operand(E4M3FN)) == "E4M3FN cast"
    assert parse_operand("E4M3FN") == Operand(E4M3FN)  # a format's name casts
    operand = Operand(E5M2, Delayed(history=16, margin=1, reduce="most_recent"))
    assert str(operand) == "E5M2 delayed history=16 margin=1 reduce=most_recent"
    turned = Operand(NVFP4, Current(), rounding="stochastic", transform=RandomHadamard(16))
    assert str(turned) == "NVFP4 current 1x16 stochastic hadamard=16"


def test_a_block_format_fills_in_its_block_and_its_rule():
    assert Operand(MX_E4M3FN, Current()) == Operand(MX_E4M3FN, Current("floor"), PerBlock(32))
    assert Operand(NVFP4, Unit()).granularity == PerBlock(16)


def test_a_tile_of_one_row_is_a_block():
    assert Operand(E4M3FN, Current(), PerTile(1, 128)) == Operand(E4M3FN, Current(), PerBlock(128))


REFUSED = {
    "rounding is 'up'; expected nearest or stochastic": lambda: Operand(E4M3FN, rounding="up"),
    "format is 'E4M3FN'; expected a FloatFormat or a BlockFormat": lambda: Operand("E4M3FN"),
    "scale is 'unit'; expected Cast(), Unit()": lambda: Operand(E4M3FN, "unit"),
    "granularity is 'row'; expected PerTensor()": lambda: Operand(E4M3FN, Current(), "row"),
    "transform is 16; expected RandomHadamard()": lambda: Operand(E4M3FN, transform=16),
    "scale is <class": lambda: Operand(E4M3FN, Current),
    "E8M0FNU has no sign or no zero": lambda: Operand(E8M0FNU),
    "no format 'E4M3FN' with these fields": lambda: Operand(
        FloatFormat(**{**vars(E5M2), "name": "E4M3FN"})
    ),
    "a scale that is given (unit) is one for the tensor, not for each row": lambda: Operand(
        E4M3FN, Unit(), PerAxis()
    ),
    "a scale that is given (delayed) is one for the tensor, not for each 1x128": lambda: Operand(
        E4M3FN, Delayed(), PerBlock(128)
    ),
    "the axis of a granularity is that of the contraction": lambda: Operand(
        E4M3FN, Current(), PerAxis(0)
    ),
    "without a format nothing is rounded, but scale is current": lambda: Operand(None, Current()),
    "and rounding stochastic; name a format": lambda: Operand(rounding="stochastic"),
    "and transform RandomHadamard(size=16); name a format": lambda: Operand(
        transform=RandomHadamard()
    ),
    "a delayed scale follows the amax of the tensor": lambda: Operand(
        E4M3FN, Delayed(), transform=RandomHadamard()
    ),
    "MX_E4M3FN shares a scale among 32 values or 32x32, not 1x16": lambda: Operand(
        MX_E4M3FN, Current(), PerBlock(16)
    ),
    "the scales of MX_E4M3FN are computed; use Current(), or Unit()": lambda: Operand(MX_E4M3FN),
    "the scales of NVFP4 are no powers of two": lambda: Operand(NVFP4, Current("rceil")),
    "Delayed: history is 0; expected 1 or more": lambda: Delayed(history=0),
    "Delayed: history is True; expected 1 or more": lambda: Delayed(history=True),
    "Delayed: margin is -1; expected a whole number from 0 to 64": lambda: Delayed(margin=-1),
    "Delayed: reduce is 'mean'; expected max or most_recent": lambda: Delayed(reduce="mean"),
    "Current: power_of_two is 'up'; expected None or one of floor": lambda: Current("up"),
    "Current: margin is 65; expected a whole number from 0 to 64": lambda: Current(margin=65),
    "Constant: log2 is 0.5; expected a whole number from -126 to 127": lambda: Constant(0.5),
    "Constant: log2 is 200; expected a whole number from -126 to 127": lambda: Constant(200),
    "RandomHadamard: size is 12; expected a power of two": lambda: RandomHadamard(12),
    "RandomHadamard: size is 1; expected a whole number from 2 to 1024": lambda: RandomHadamard(1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        REFUSED[message]()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an operand's text is empty"),
        ("E9", "unknown format 'E9'"),
        ("E4M3FN curent", "'curent' is no part of one"),
        ("E4M3FN current 1x", "'1x' is no part of one"),
        ("E4M3FN cast margin=3", "'margin=3' is no part of one"),
        ("E4M3FN current hadamard=x", "'hadamard=x' is no part of one"),
        ("E4M3FN unit row", "a scale that is given"),
        ("E4M3FN current row 1x32", "'row' and '1x32' both say who shares a scale; leave one"),
        ("E4M3FN current tensor row", "'tensor' and 'row' both say who shares a scale"),
        ("E4M3FN current floor ceil", "'floor' and 'ceil' both say the rule for powers of two"),
        ("E4M3FN current margin=1 margin=2", "'margin=1' and 'margin=2' both say margin"),
        ("E4M3FN cast stochastic nearest", "'stochastic' and 'nearest' both say the rounding"),
        ("E4M3FN current hadamard=16 hadamard=32", "'hadamard=32' both say the transform"),
        ("E4M3FN current current", "'current' is no part of one"),
        ("E4M3FN current margin=²", "margin is '²'; expected a whole number from 0 to 64"),
        ("E4M3FN current margin=--3", "margin is '--3'; expected a whole number"),
        ("E4M3FN constant log2=" + "9" * 5000, "; expected a whole number from -126 to 127"),
        ("E4M3FN current 1x²", "'1x²' is no part of one"),
        ("E4M3FN current 1x" + "9" * 5000, "9' is no part of one"),
        ("E4M3FN current hadamard=²", "'hadamard=²' is no part of one"),
        ("E4M3FN current hadamard=1073741824", "size is 1073741824; expected a whole number"),
    ],
)
def test_a_text_that_is_none_says_which_word(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse_operand(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, 3, b"E4M3FN", ["E4M3FN"], Operand()], ids=repr)
def test_what_is_no_text_is_a_type_error(text):
    with pytest.raises(TypeError, match=re.escape(f"parse_operand: text is {text!r}; expected")):
        parse_operand(text)


@pytest.mark.parametrize(
    ("text", "is_shared"),
    [
        ("E4M3FN", True),
        ("E4M3FN current", True),
        ("NVFP4 current 16x16", True),
        ("E4M3FN current 128x128", True),
        ("E4M3FN current 128x64", False),
        ("E4M3FN current row", False),
        ("MX_E4M3FN current floor", False),
        ("E4M3FN current stochastic", False),
        ("E4M3FN current hadamard=16", False),
    ],
)
def test_one_copy_serves_both_products_only_where_it_is_the_same_both_ways(text, is_shared):
    assert parse_operand(text).is_shared == is_shared
