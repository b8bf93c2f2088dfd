from dataclasses import replace

import pytest

from laws.synthetic import published_rows, recipe_rows
from unitscale.laws.identify import form_for
from unitscale.laws.row import Row


def form_of(rows, **options):
    return form_for(rows, **({"tied": True, "offsets": True, "reference": None} | options))


def test_form_of_a_grid_of_recipes():
    form, notes = form_of(recipe_rows())
    assert form.names == ("A", "B", "E", "alpha", "f_fp8-e4m3", "f_mxfp4")
    assert form.reference == "fp32"
    assert notes == ()


def test_form_of_bits():
    form, notes = form_of(published_rows(60), tied=False)
    curves = ("gamma_w", "gamma_a", "gamma_kv", "n_w", "n_a", "n_kv")
    assert form.names == ("A", "B", "E", "alpha", "beta", *curves)
    assert notes == ()


def test_column_that_never_varies_is_dropped_and_two_values_tie_the_offset():
    rows = [
        replace(row, bits={"w": row.bits["w"], "a": 4.0 if row.bits["a"] < 8 else 8.0, "kv": 16.0})
        for row in published_rows(60)
    ]
    form, notes = form_of(rows)
    assert form.tensors == ("w", "a")
    assert form.offsets == ("w",)
    assert notes == (
        "P_a has 2 values, fewer than 3: its offset n is held at 0",
        "P_kv is 16 in every row: its effect is left out",
    )


@pytest.mark.parametrize("field", ["size", "tokens"])
def test_two_sizes_or_lengths_are_refused(field):
    what = {"size": "2 different sizes N", "tokens": "2 different numbers of tokens D"}
    values = sorted({getattr(row, field) for row in recipe_rows()})[:2]
    rows = [row for row in recipe_rows() if getattr(row, field) in values]
    with pytest.raises(ValueError, match=rf"{what[field]} \({values[0]:g}, {values[1]:g}\)"):
        form_of(rows)
    three = [row for row in recipe_rows() if getattr(row, field) not in values[:1]]
    form_of(three)


def test_sizes_and_tokens_that_grow_together_are_refused():
    rows = [row for row in recipe_rows() if 3 < row.tokens / row.size < 9]
    assert len({row.size for row in rows}) == 4
    with pytest.raises(ValueError, match="N and D change together in the rows"):
        form_of(rows)


def test_one_precision_is_refused():
    rows = [row for row in recipe_rows() if row.recipe == "mxfp4"]
    with pytest.raises(ValueError, match=r"all 16 rows have one precision \(mxfp4\)"):
        form_of(rows)


def test_fewer_rows_than_parameters_are_refused():
    rows = published_rows(10)
    with pytest.raises(ValueError, match="10 rows for 10 parameters"):
        form_of(rows)


def test_reference_is_the_widest_or_the_one_asked_for():
    rows = recipe_rows(factors={"fp32-units": 1.0, "mxfp4": 0.5, "fp32": 1.0})
    assert form_of(rows)[0].reference == "fp32"
    assert form_of(rows, reference="mxfp4")[0].reference == "mxfp4"
    with pytest.raises(ValueError, match="the reference is 'bf16', which no row has"):
        form_of(rows, reference="bf16")


def test_recipes_of_ones_own_need_a_reference():
    rows = recipe_rows(factors={"mine.py:A": 1.0, "mine.py:B": 0.5})
    with pytest.raises(ValueError, match=r"none of the recipes .*B is one of ours"):
        form_of(rows)
    assert form_of(rows, reference="mine.py:A")[0].recipes == ("mine.py:B",)


def test_unrounded_rows_are_a_precision():
    rows = [
        Row(size=size, tokens=tokens, loss=2.0, bits=bits)
        for size in (1e3, 1e4, 1e5)
        for tokens in (1e4, 1e5, 1e6)
        for bits in ({}, {"w": 4.0})
    ]
    form, notes = form_of(rows)
    assert form.tensors == ("w",)
    assert len(notes) == 1


def test_bits_that_are_always_equal_are_one_curve():
    rows = [
        replace(row, bits=dict.fromkeys(("w", "a"), row.bits["w"])) for row in published_rows(60)
    ]
    form, notes = form_of(rows)
    assert form.tensors == ("w+a",)
    assert notes == ("bits of w+a are equal in every row: their effects are one curve",)
