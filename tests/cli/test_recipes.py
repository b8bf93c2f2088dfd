"""`unitscale recipes`."""

import json
import re
import sys
from pathlib import Path

import pytest

from unitscale.cli import main
from unitscale.cli.compare import compare
from unitscale.recipes import RECIPES, RIVALS, TRUE_FP16


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """What the command prints on stdout."""
    monkeypatch.setattr(sys, "argv", ["unitscale", "recipes", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_json_has_every_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row["recipe"]: row for row in json.loads(run(capsys, monkeypatch, "--json"))}
    assert rows.keys() == RECIPES.keys()
    fp8 = rows["fp8"]
    assert (fp8["forward"], fp8["backward"], fp8["result"]) == ("E4M3FN", "E5M2", None)
    assert fp8["scale"] == "the tensor's unit"
    assert list(fp8["products"][1].values()) == [
        *("grad_input", "E5M2 unit", "E4M3FN unit", "as is"),
    ]
    assert rows["nvfp4"]["shared_by"] == "1x16, 16x16"
    assert rows["nvfp4"]["rounds"] == "linear"
    assert (rows["coat"]["saved"], fp8["saved"]) == ("E4M3FN current 1x16", None)
    assert rows["fp16-loss"]["scale"] == "of the loss: 2048"
    assert rows["fp16-loss-dynamic"]["scale"] == "of the loss: dynamic"


def test_table_has_a_line_for_every_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run(capsys, monkeypatch).splitlines()
    assert max(map(len, lines)) <= 120
    rows = [line for line in lines if line.strip()][2:]  # after the head and its line
    assert [row.split()[0] for row in rows[: len(RECIPES)]] == list(RECIPES)
    groups = " ".join(rows[len(RECIPES) :])
    assert groups.startswith("mus: readout products in BF16 for character models, every tensor")
    assert all(f" {name}" in groups for name in TRUE_FP16)
    assert "groups, wherever several recipes are taken: all; and rivals" in groups
    assert groups.endswith(", ".join(RIVALS))


def test_group_is_listed_in_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(run(capsys, monkeypatch, "rivals", "--json"))
    assert [row["recipe"] for row in rows] == list(RIVALS)
    lines = [line for line in run(capsys, monkeypatch, "rivals").splitlines() if line.strip()]
    assert [line.split()[0] for line in lines[2:]] == list(RIVALS)


def test_recipe_of_ones_own_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "from unitscale.recipes import Recipe, uniform\nMINE = Recipe(name='mine')\n"
    (tmp_path / "recipe_to_show.py").write_text(text)
    out = run(capsys, monkeypatch, f"{tmp_path / 'recipe_to_show.py'}:MINE")
    assert out.split() == ["mine", "rounds", "nothing"]


def test_every_recipe_says_who_uses_it_and_what_a_person_chose() -> None:
    assert all(recipe.users for recipe in RECIPES.values())
    assert RECIPES["fp8-delayed"].chosen == ("history 1024", "reduce max")
    assert RECIPES["fp8-amax"].chosen == ("rule rceil", "margin 3")
    assert not any(r.chosen for r in RECIPES.values() if r.unit_scaled and r.name != "nvfp4-units")


def test_a_named_recipe_is_shown_in_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, monkeypatch, "nvfp4").rstrip() == str(RECIPES["nvfp4"])


def test_an_unknown_name_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["unitscale", "recipes", "nvfp5"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "Did you mean 'nvfp4'?" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["help", "docs"])
def test_what_is_said_to_have_units_has_them(place: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "existing_models.md"
    text = compare.__doc__ if place == "help" else page.read_text()
    assert text is not None
    (said,) = re.findall(r"Recipes with units \(([^)]*)\)", text)
    names = [name.strip("`") for name in said.replace("\n", " ").replace(",", " ").split()]
    assert names == [recipe.name for recipe in RECIPES.values() if recipe.unit_scaled]


def test_one_format_for_every_tensor_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = json.loads(run(capsys, monkeypatch, "fp16-true-ftz(11)", "--json"))
    assert (row["rounds"], row["forward"], row["backward"]) == ("every tensor", "FP16", "FP16")
    assert row["scale"] == "of the loss: 2048"
    shown = run(capsys, monkeypatch, "fp16-true-ftz-units")
    assert "every tensor of a training run: FP16 nearest, subnormals flushed" in shown


@pytest.mark.parametrize(
    "line",
    [
        ["plan-memory", "--model", "llama", "--recipe", "fp16-true"],
        ["doctor", "--recipe", "fp16-true"],
        ["analyse", "mine:factory", "--what-if", "fp8,fp16-true"],
    ],
)
def test_commands_on_products_alone_refuse_one_format_for_every_tensor(
    line: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unitscale", *line])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "recipe 'fp16-true' rounds every tensor" in said
    assert line[0] in said


def test_product_in_another_format_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line.strip() for line in run(capsys, monkeypatch).splitlines()]
    assert [line for line in lines if " products in " in line] == ["mus: readout products in BF16"]
    (row,) = [line for line in lines if line.startswith("mus ")]
    assert "readout" not in row
