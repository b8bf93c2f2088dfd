"""Recipes by name, in groups, and of one's own."""

from pathlib import Path

import pytest

from train.tiny import text_corpus, tiny_config
from unitscale.recipes import RECIPES, RIVALS
from unitscale.train import train
from unitscale.train.comparison import compare
from unitscale.train.named import GROUPS, expanded, find_recipe
from unitscale.train.planned import plan_runs, run_folder

TEXT = """
from dataclasses import replace
from unitscale.recipes import RECIPES
MINE = replace(RECIPES["fp8-current"], name="mine/1")
ALSO = replace(RECIPES["fp8-e4m3-current"], name="mine/1")
TAKEN = replace(RECIPES["fp8-current"], name="fp8")
GROUP = replace(RECIPES["fp8-current"], name="rivals")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """FILE.py of recipes of one's own."""
    path = tmp_path / f"recipes_{tmp_path.name}.py"
    path.write_text(TEXT)
    return str(path)


def test_groups_and_names_are_each_taken_once() -> None:
    assert expanded(["rivals", "fp8, mxfp4-even", "fp8"]) == [*RIVALS, "mxfp4-even"]
    assert expanded(["all"]) == list(RECIPES)
    assert expanded([" , "]) == []
    assert GROUPS.keys() == {"all", "rivals"}


def test_own_recipe_is_found(own: str) -> None:
    assert find_recipe(f"{own}:MINE").name == "mine/1"
    assert find_recipe("nvfp4") is RECIPES["nvfp4"]


@pytest.mark.parametrize("name", ["TAKEN", "GROUP"])
def test_own_recipe_with_the_name_of_another_is_refused(own: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"is called '(fp8|rivals)', which is the name of another"):
        find_recipe(f"{own}:{name}")


def test_two_recipes_of_one_name_are_refused(own: str) -> None:
    with pytest.raises(ValueError, match=r"MINE and .*ALSO are both called 'mine/1'"):
        plan_runs(tiny_config(), [f"{own}:MINE", f"{own}:ALSO"], [0])


def test_comparison_with_ones_own_recipe_keeps_its_name_and_rules(own: str, tmp_path: Path) -> None:
    base = tiny_config(steps=2, existing="train.test_existing:Bigram", model={"width": 16})
    configs = plan_runs(base, ["fp8-current", f"{own}:MINE"], [0])
    corpus = text_corpus(tmp_path)
    *_, results = compare(configs, corpus, tmp_path / "out")
    assert [run["recipe"] for run in results["runs"]] == ["fp8-current", "mine/1"]
    assert results["runs"][0]["valid_loss"] == results["runs"][1]["valid_loss"]
    assert "E4M3FN current @ E4M3FN current" in results["recipes"]["mine/1"]["rules"]
    assert "rules" not in results["recipes"]["fp8-current"]
    assert run_folder(tmp_path / "out", configs[1]).name == "mine_1-seed0"
    assert run_folder(tmp_path / "out", configs[1]).is_dir()


def test_own_recipe_that_was_changed_does_not_resume(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, config = text_corpus(tmp_path), tiny_config(steps=2, recipe=f"{own}:MINE")
    train(config, corpus, tmp_path / "run")
    train(config, corpus, tmp_path / "run", resume=True)
    other = find_recipe(f"{own}:ALSO")
    monkeypatch.setattr("unitscale.train.config.find_recipe", lambda name: other)
    with pytest.raises(ValueError, match="holds another run: its rules is"):
        train(config, corpus, tmp_path / "run", resume=True)
