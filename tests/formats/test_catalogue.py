"""Names to formats."""

import dataclasses

import pytest

from unitscale.formats import BF16, E4M3FN, FORMATS, FP16, parse


def test_catalogue_is_keyed_by_name():
    assert all(name == fmt.name for name, fmt in FORMATS.items())


def test_names_in_the_package_are_the_catalogue():
    from unitscale import formats

    assert all(getattr(formats, name) is fmt for name, fmt in FORMATS.items())
    assert set(FORMATS) <= set(formats.__all__)


@pytest.mark.parametrize("name", FORMATS)
def test_parse_finds_the_catalogue_in_any_case(name):
    assert parse(name) is parse(name.lower()) is parse(f" {name} ") is FORMATS[name]


@pytest.mark.parametrize(("name", "known"), [("E5M10", FP16), ("E8M7", BF16)])
def test_parse_makes_ieee_like_formats_on_demand(name, known):
    assert dataclasses.replace(parse(name), name=known.name) == known


def test_plain_e4m3_is_the_ieee_like_one():
    assert parse("E4M3").max == 240
    assert parse("E4M3FN").max == 448


@pytest.mark.parametrize("name", ["E1M3", "E12M3", "E4M0", "E4M53"])
def test_parse_refuses_what_python_floats_cannot_hold(name):
    with pytest.raises(ValueError, match=f"'{name}' is out of range; expected E2M1 to E11M52"):
        parse(name)


def test_parse_suggests_the_nearest_name_and_lists_all():
    with pytest.raises(ValueError, match="'E4M3NF', did you mean E4M3FN") as raised:
        parse("E4M3NF")
    assert all(name in str(raised.value) for name in FORMATS)


def test_parse_without_a_near_name():
    with pytest.raises(ValueError, match="'float'; expected one of FP64, FP32"):
        parse("float")


def test_missing_name_of_the_package():
    from unitscale import formats

    with pytest.raises(AttributeError, match="no attribute 'E9M9'"):
        _ = formats.E9M9
    assert "round_to" in dir(formats)
    assert E4M3FN in FORMATS.values()
