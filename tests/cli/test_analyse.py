"""`unitscale analyse`: what it finds in a user's model, and one line for what goes wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unitscale.cli import main
from unitscale.recipes import RECIPES, RIVALS

MODELS = """
import torch
from torch import nn

class Parts(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
    def forward(self, x):
        return self.layers(x)

def parts():
    model = Parts(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    for p in model.parameters():
        p.data.mul_(2.0**-12)
    return model, torch.randn(64, 16), lambda y: y.square().mean()

class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
    def forward(self, x, scale=1.0):
        y = self.linear(x)
        y[:, 1:].relu_()
        return {"loss": (y * scale).sum()}

def keywords():
    return WithLoss(), {"x": torch.randn(4, 8), "scale": 2.0}
def positional():
    return WithLoss(), (torch.randn(4, 8), 2.0)
def language_model():
    return nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))
def drawn():
    import random
    import numpy as np
    model = Parts(nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 4))
    x = torch.randn(8, 16) * random.uniform(1, 2) + float(np.random.rand())
    return model, x, lambda y: y.square().mean()
def not_scalar():
    return nn.Linear(4, 4), torch.randn(2, 4)
def no_gradient():
    return nn.ReLU(), torch.tensor(3.0)
def wrong_shape():
    return nn.Linear(4, 4), torch.randn(2, 5), lambda y: y.sum()
def nan():
    x = torch.randn(2, 4)
    x[0, 0] = float("nan")
    return Parts(nn.Linear(4, 4)), x, lambda y: y.sum()
def number():
    return 3
def pair():
    return 3, 4
def fails():
    raise KeyError("weights.bin")
def scaled():
    import unitscale as us
    model, x, loss = parts()
    return us.unit_scale(model, inner="eager"), x, loss
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models_of_test.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("models_of_test", None)
    return tmp_path


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `unitscale analyse`."""
    monkeypatch.setattr(sys, "argv", ["unitscale", "analyse", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, *capsys.readouterr()


def test_tensors_before_and_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, "models_of_test:parts", "--json", "--out", "report")
    assert code == 0, err
    results = json.loads(out)
    assert json.loads((folder / "report" / "results.json").read_text()) == results
    assert results["model"] == "models_of_test:parts"
    assert results["share_in_range"]["activations"] == {"before": 0.0, "after": 1.0}
    by_name = {tensor["name"]: tensor for tensor in results["tensors"]}
    hidden = by_name["layers.1.gelu"]
    assert hidden["rms"]["before"] < 2.0**-12
    assert 0.7 < hidden["rms"]["after"] < 1.42
    assert hidden["rms"]["after"] == hidden["rms"]["before"] / hidden["s"]
    assert hidden["grad_rms"]["after"] == hidden["grad_rms"]["before"] * hidden["phi"]
    loss = hidden["value_loss"]["E4M3FN"]
    assert loss["flushed_before"] > 0.9  # half of E4M3FN's smallest value is 2**-10
    assert loss["flushed_after"] < 0.02
    assert loss["saturated_after"] == 0.0
    assert set(hidden["grad_loss"]) == {"E5M2", "FP16"}
    row = hidden["statistics"]["value"]  # that of a recording, of the tensor as it is held
    assert 2.0 ** -row["held_log2"] == hidden["s"]
    assert row["formats"]["E4M3FN"]["flushed"] == pytest.approx(loss["flushed_after"], rel=1e-5)
    assert sum(row["histogram"][1]) == row["sampled"] == hidden["elements"]
    assert by_name["layers.0.weight"]["reason"] == "input of the graph"
    page = (folder / "report" / "report.html").read_text()
    assert "layers.1.gelu" in page
    assert "input of the graph" in page
    assert "tensors have an RMS between 1/2 and 2 as the model computes them, and" in page
    assert 'id="histogram"' in page


def test_two_calls_find_the_same_and_another_seed_something_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The factory draws from torch, numpy and Python; the model has dropout."""

    def found(*arguments: Any) -> str:
        torch.manual_seed(torch.seed() % 2**32)  # whatever the process has drawn before
        asked = ("models_of_test:drawn", "--json", "--suggest-skip", "fp8-current")
        code, out, err = run(monkeypatch, capsys, *asked, *arguments)
        assert code == 0, err
        return out

    first = found()
    assert found() == first == found("--seed", 0)
    assert found("--seed", 1) != first


@pytest.mark.parametrize("seed", ["-1", "4294967296", "x"])
def test_a_seed_that_is_none_is_refused_in_one_line(
    seed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "models_of_test:drawn", "--seed", seed)
    assert code == 2
    assert "--seed" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("factory", ["keywords", "positional", "language_model"])
def test_inputs_of_every_kind(
    factory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, f"models_of_test:{factory}", "--rows", 3)
    assert code == 0, err
    assert f"models_of_test:{factory}: " in " ".join(out.split())
    assert "the 3 tensors furthest from 1" in out
    assert ("written to in place" in out) == (factory != "language_model")


@pytest.mark.parametrize(
    ("factory", "code", "message"),
    [
        ("not_scalar", 1, "the loss is a tensor of shape [2, 4]; expected a scalar tensor"),
        ("no_gradient", 1, "expected a scalar tensor that requires a gradient"),
        ("wrong_shape", 1, "the model failed on its inputs: RuntimeError: mat1 and mat2 shapes"),
        ("nan", 1, "holds NaN"),
        ("fails", 1, "models_of_test:fails failed: KeyError: 'weights.bin'"),
        ("number", 2, "returned a int; expected model, inputs[, loss function]"),
        ("pair", 2, "returned a tuple of int, int; expected model, inputs[, loss function]"),
        ("scaled", 2, "this Parts is already scaled"),
        ("part", 2, "has no 'part'; did you mean 'parts'?"),
    ],
)
def test_failure_is_one_line(
    factory: str,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got, out, err = run(monkeypatch, capsys, f"models_of_test:{factory}")
    assert (got, out, err.count("\n")) == (code, "", 1), err
    assert message in err


def test_missing_module_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "no_module_of_test:parts")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no module 'no_module_of_test'" in err


def test_what_if_says_what_recipes_would_make(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--what-if", "fp8, fp8-none", "--suggest-skip", "mxfp4", "--budget", 0.2)
    code, out, err = run(monkeypatch, capsys, "models_of_test:parts", "--json", *arguments)
    assert code == 0, err
    results = json.loads(out)
    rows = {row["what_if"]: row for row in results["what_if"]}
    assert list(rows) == ["layers.2.linear", "layers.0.linear"]
    recipes = rows["layers.2.linear"]["recipes"]
    assert list(recipes) == ["fp8", "fp8-none", "mxfp4"]
    # Weights of 2**-14: casts lose them all, units do not.
    assert recipes["fp8-none"]["errors"]["output"] > 0.9
    assert recipes["fp8"]["errors"]["output"] < 0.1
    assert results["what_if_notes"] == []
    found = results["suggest_skip"]  # 32 x 4 of 32 x 4 + 16 x 32
    assert (found["skip"], found["share_of_multiply_adds"]) == (["layers.2"], 0.2)
    (gain,) = found["gains"]
    assert (gain["pattern"], gain["share"]) == ("layers.2", 0.2)
    assert 0 < gain["error_after"] < gain["error_before"]


def test_what_if_in_a_terminal_and_in_the_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("models_of_test:language_model", "--suggest-skip", "nvfp4", "--budget", 1)
    code, out, err = run(monkeypatch, capsys, *arguments, "--out", "report")
    assert code == 0, err
    text = " ".join(out.split())
    assert "In nvfp4 no result of 1 product would lose 3 dB more than the median." in text
    # The path in the user's model, which the command wraps in a loss.
    assert "with 100.0% of the multiply-adds that it rounds in full precision (" in text
    assert "(nvfp4 rounds 100.0% of the multiply-adds of the model): skip=['1']" in text
    page = (folder / "report" / "report.html").read_text()
    assert "What other recipes would do" in page
    assert "skip=[&#x27;1&#x27;]" in page
    for said in (text, page):
        assert "kept in full precision" in said
        assert "error before" in said
    # All products of the model are in it, so that nothing is left.
    assert "with it (-100%)." in text


def test_what_if_options_and_groups_add_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--what-if", "fp8-e4m3,rivals", "--what-if", "fp8-none")
    code, out, err = run(monkeypatch, capsys, "models_of_test:parts", "--json", *arguments)
    assert code == 0, err
    found = set(json.loads(out)["what_if"][0]["recipes"])
    assert found == {"fp8-none"} | {name for name in RIVALS if RECIPES[name].rounds}


@pytest.mark.parametrize("columns", [120, 220])
def test_recipes_that_have_no_room_side_by_side_are_no_table_of_dots(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if columns == 220 else "0")
    for asked, has_room in (("all", False), ("fp8,nvfp4", True)):
        code, out, err = run(monkeypatch, capsys, "models_of_test:parts", "--what-if", asked)
        assert code == 0, err
        assert "…" not in out
        assert ("no room side by side" in out) != has_room
        assert out.count("layers.2.linear") > 1  # of a recipe the worst product, if no more
        assert "nvfp4" in out


def test_budget_that_no_module_fits_into_names_one_that_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        monkeypatch, capsys, "models_of_test:parts", "--suggest-skip", "fp8", "--budget", 0.01
    )
    assert code == 0, err
    text = " ".join(out.split())
    assert "For fp8 no module fits into a budget of 1.0% of the multiply-adds that it" in text
    assert "the smallest has 20.0%, so give --budget 0.2 or more (fp8 rounds 100.0%" in text


OWN_RECIPE = """
from dataclasses import replace
from unitscale.recipes import RECIPES, Recipe
MINE = replace(RECIPES["fp8-current"], name="mine")
TAKEN = replace(RECIPES["fp8-current"], name="fp8")
NUMBER = 3
"""


@pytest.mark.parametrize("name", ["own_recipe_of_test:MINE", "own_recipe_of_test.py:MINE"])
def test_recipe_of_ones_own_by_module_or_file(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "own_recipe_of_test.py").write_text(OWN_RECIPE)
    arguments = ("--what-if", f"fp8-current,{name}", "--suggest-skip", name, "--budget", 1)
    code, out, err = run(monkeypatch, capsys, "models_of_test.py:parts", "--json", *arguments)
    assert code == 0, err
    results = json.loads(out)
    recipes = results["what_if"][0]["recipes"]
    assert recipes["mine"] == recipes["fp8-current"]
    assert results["suggest_skip"]["recipe"] == "mine"
    assert list(results["recipes"]) == ["mine"]
    assert "E4M3FN current @ E4M3FN current" in results["recipes"]["mine"]


def test_results_without_what_if_are_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, "models_of_test:parts", "--json")
    assert code == 0
    assert not {"what_if", "what_if_notes", "suggest_skip"} & json.loads(out).keys()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--what-if", "fp8,fp9"], 2, "unknown recipe 'fp9'"),
        (["--what-if", ""], 2, "unknown recipe ''"),
        (["--what-if", "fp8", "--what-if", "fp8"], 2, "--what-if names 'fp8' twice"),
        (["--suggest-skip", "rivals"], 2, "'rivals' is a group of 17 recipes; expected one"),
        (["--what-if", "models_of_test:parts"], 2, "is a function; expected a unitscale.recipes"),
        (["--what-if", "nothing.py:MINE"], 2, "there is no file nothing.py"),
        (["--what-if", "fp8,fp8"], 2, "--what-if names 'fp8' twice"),
        (["--suggest-skip", "fp9"], 2, "unknown recipe 'fp9'"),
        (["--suggest-skip", "nvfp4", "--budget", "1.5"], 2, "--budget is 1.5; expected a share"),
        (["--suggest-skip", "fp32"], 1, "fp32 was measured in no product here"),
    ],
)
def test_wrong_what_if_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got, out, err = run(monkeypatch, capsys, "models_of_test:parts", *arguments)
    assert (got, out, err.count("\n")) == (code, "", 1), err
    assert message in err
