"""The pages for those who write models do what they say."""

import pytest

from house import snapshot
from house.test_readme import blocks, unknown_flags
from house.tree import REPOSITORY


def page(name):
    return (REPOSITORY / "docs" / name).read_text(encoding="utf-8")


def run(name, chosen):
    """The chosen blocks of a page, one after the other in one session."""
    scope = {}
    for index, block in enumerate(chosen):
        exec(compile(block, f"{name} block {index}", "exec"), scope)
    return scope


def test_blocks_of_writing_models_run_in_turn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(page("writing_models.md"), "python")
    assert len(found) >= 6
    assert "losses" in run("writing_models.md", found)


def test_a_block_that_fails_is_noticed():
    with pytest.raises(AssertionError):
        run("none", ["x = 1", "assert x == 2"])


def test_the_model_without_our_modules_has_its_rates():
    (own,) = (block for block in blocks(page("learning_rates.md"), "python") if "class" in block)
    groups = run("learning_rates.md", [own])["optimizer"].param_groups
    assert {group["kind"] for group in groups} == {"input", "hidden", "norm"}


def test_commands_of_writing_models_exist():
    assert unknown_flags(page("writing_models.md"), snapshot.read("cli_flags")) == []
