"""Recipes of one's own that name modules: paths of one's own model, checked before any step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import unitscale as us
from cli.calls import called
from train.tiny import text_corpus
from unitscale.recipes import RECIPES, Rule
from unitscale.record import record

TINY = ["--batch-size", "4", "--sequence-length", "16", "--set", "eval_windows=8", "--steps", "1"]
HERE = "cli.test_own_recipe"
FP8 = RECIPES["fp8-current"]
head = replace(FP8, name="keeps-head", rules=(Rule(path="head"), *FP8.rules))
skips = replace(FP8, name="skips-head", skip=("head",))
typo = replace(FP8, name="typo", rules=(Rule(path="haed"), *FP8.rules))
skipped_typo = replace(FP8, name="skipped-typo", skip=("haed",))
on_a_device = replace(RECIPES["nvfp4"], name="on-a-device", executor="scaled_mm")


class Bigram(nn.Module):
    """A model with a read-out by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.table(ids)))


@pytest.fixture
def data(tmp_path: Path) -> list[object]:
    text_corpus(tmp_path)
    return ["--data", tmp_path / "text.txt", *TINY]


@pytest.mark.parametrize("command", ["train", "compare", "analyse", "plan-memory"])
@pytest.mark.parametrize("recipe", ["typo", "skipped_typo"])
def test_path_of_no_module_is_one_line_before_anything_is_trained(
    command: str,
    recipe: str,
    data: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, mine, out = f"{HERE}:Bigram", f"{HERE}:{recipe}", ["--out", tmp_path / "out"]
    line = {
        "train": ["train", "--model", model, "--recipe", mine, *data, *out],
        "compare": ["compare", "--model", model, "--recipes", f"fp32,{mine}", *data, *out],
        "analyse": ["analyse", model, "--what-if", mine, *out],
        "plan-memory": ["plan-memory", "--model", model, "--recipe", f"fp32,{mine}"],
    }[command]
    code, printed, err = called(monkeypatch, capsys, *line)
    assert (code, printed, err.count("\n")) == (2, "", 1), err
    assert "='haed' matches no module of Bigram; nearest path: 'head'" in err
    assert not (tmp_path / "out").exists()


def test_executor_that_is_not_here_is_said_before_the_first_run(
    data: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipes = f"fp32,{HERE}:on_a_device"
    line = ["compare", "--model", f"{HERE}:Bigram", "--recipes", recipes, *data]
    line += ["--device", "cpu", "--out", tmp_path / "out"]
    code, _, err = called(monkeypatch, capsys, *line)
    assert (code, err.count("\n")) == (2, 1), err
    assert "recipe 'on-a-device': " in err


@pytest.mark.parametrize(("recipe", "why"), [("head", "keeps-head keeps"), ("skips", "='head'")])
def test_path_is_that_of_the_persons_own_model(
    recipe: str,
    why: str,
    data: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["train", "--model", f"{HERE}:Bigram", "--recipe", f"{HERE}:{recipe}", *data, "--json"]
    code, out, err = called(monkeypatch, capsys, *line, "--out", tmp_path / "out")
    assert code == 0, err
    result = json.loads(out)
    # inner has 8 x 8 weights and head 8 x 256: one of the two is rounded.
    assert result["coverage"] == pytest.approx(64 / (64 + 2048), abs=1e-4)
    assert why in next(iter(result["full_precision"]))
    line = ["analyse", f"{HERE}:Bigram", "--what-if", f"{HERE}:{recipe}", "--json"]
    code, out, err = called(monkeypatch, capsys, *line)
    assert code == 0, err
    name = {"head": "keeps-head", "skips": "skips-head"}[recipe]
    found = {r["module"]: r["recipes"][name].get("why") for r in json.loads(out)["what_if"]}
    assert why in found["head"]
    assert found["inner"] is None


def test_recording_refuses_paths_of_no_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for recipe in (typo, skipped_typo):
        with (
            pytest.raises(ValueError, match="'haed' matches no module of Sequential"),
            record(model, what_if=[recipe]),
        ):
            pass
    with record(model, what_if=[replace(skips, skip=("0",))]) as recorder:
        model(torch.ones(2, 4)).sum().backward()
    answers = [row for row in recorder.rows if "what_if" in row]
    whys = [row["recipes"]["skips-head"].get("why") for row in answers]
    assert sorted(whys, key=str) == [None, "full precision: skip='0'"]
    assert us.units.forward.session_of(model) is None
