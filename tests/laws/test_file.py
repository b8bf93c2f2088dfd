import json

import pytest

from laws.synthetic import published_rows, recipe_rows
from laws.test_law import post_rows
from unitscale.laws import fit, load, published


@pytest.fixture(scope="module")
def law():
    return fit(post_rows(), draws=4)


@pytest.mark.parametrize("which", ["recipes", "bits", "published"])
def test_law_comes_back_equal(which, law, tmp_path):
    kept = {
        "recipes": lambda: law,
        "bits": lambda: fit(published_rows(60), draws=2),
        "published": published,
    }[which]()
    kept.save(tmp_path / "law.json")
    assert load(tmp_path / "law.json") == kept
    assert str(load(str(tmp_path / "law.json"))) == str(kept)
    assert list(tmp_path.iterdir()) == [tmp_path / "law.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "receipt"}, "is no law"),
        ({"version": 99}, "is of version 99; expected 1"),
        ({"values": {}}, r"is damaged \(no 'A'\)"),
        ({"values": "many"}, "is damaged"),
        ({"draws": [[1.0]]}, "a draw has not the 5 numbers"),
        ({"draws": [[None] * 5]}, "a draw is None"),
        ({"draws": [[1e9] * 5]}, "of a draw ln A is 1e\\+09; expected -20 to 60"),
        ({"residuals": []}, "0 residuals of 32 rows; expected one of each"),
        ({"residuals": [1e4] * 32}, "a residual is 10000.0; expected at most 60"),
        ({"residuals": [10**400]}, "expected a finite number"),
        ({"widths": {"fp32": 0}}, "the width of 'fp32' is 0.0; expected bits"),
        ({"notes": "one"}, "demo or notes are no text"),
        ({"version": "1"}, "is of version '1'; expected 1"),
        ({"residuals": ["x"]}, "a residual is 'x'"),
        ({"form": {"tied": True, "tensors": ["q"]}}, "tensors are"),
        ({"form": {"shape": 1}}, "is damaged"),
        ({"scope": {}}, "is damaged"),
        ({"notes": [1]}, "demo or notes are no text"),
        ({"damage": {"c": -1, "by_tokens": 1, "by_size": 1, "by_bits": 1, "robust": {}}}, "has c"),
        ({"damage_draws": []}, None),
        ({"widths": {"fp32": True}}, "a width is True"),
        ({"held_out": {"mean": 1}}, "is damaged"),
    ],
)
def test_damaged_file_is_one_clear_line(change, words, law, tmp_path):
    path = tmp_path / "law.json"
    law.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if words is None:
        load(path)
        return
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": 1}', "[" * 100_000])
def test_what_is_no_law_is_refused(text, tmp_path):
    path = tmp_path / "law.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"law\.json is no"):
        load(path)


def test_negative_constant_is_refused(tmp_path, law):
    path = tmp_path / "law.json"
    law.save(path)
    content = json.loads(path.read_text())
    content["values"]["A"] = -1.0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"A is -1\.0; expected a number above 0"):
        load(path)


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("values", "A", 1e300, r"ln A is 690\.8; expected -20 to 60"),
        ("values", "E", 0, "E is 0.0; expected a number above 0"),
        ("values", "alpha", -3.0, r"alpha is -3; expected 0\.01 to 4"),
        ("values", "alpha", "0.5", "alpha is '0.5'; expected a finite number"),
        ("values", "alpha", float("nan"), "alpha is nan; expected a finite number"),
        ("damage", "by_tokens", 1e9, r"gamma_D of the damage is 1000000000\.0, beyond"),
        ("damage", "by_bits", 1e-300, "gamma_post of the damage is 1e-300, beyond"),
        ("scope", "rows", "32", "rows is '32'; expected a whole number"),
        ("scope", "sizes", [0, 1], r"a range is \[0, 1\]"),
        ("scope", "post_bits", [3, 1e9], "a range is"),
        ("form", "recipes", "fp8", "recipes are 'fp8'; expected a list of different names"),
        ("form", "recipes", ["fp8", "fp8"], "expected a list of different names"),
        ("form", "reference", None, "reference is None"),
        ("form", "tied", 1, "tied is 1"),
        ("held_out", "mean", "small", "mean is 'small'"),
    ],
)
def test_a_part_that_no_fit_ends_with_is_refused(part, name, value, words, law, tmp_path):
    path = tmp_path / "law.json"
    law.save(path)
    content = json.loads(path.read_text())
    content[part][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_saving_into_nowhere_leaves_nothing(law, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        law.save(tmp_path / "none" / "law.json")
    with pytest.raises(IsADirectoryError):
        law.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_recipe_rows_need_no_file():
    assert fit(recipe_rows(), draws=0).draws == ()
