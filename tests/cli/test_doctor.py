"""`unitscale doctor`."""

import json
import sys

import pytest
import torch

from unitscale.cli import main
from unitscale.gemm import executor
from unitscale.gemm.executor import Ability
from unitscale.recipes import RECIPES
from unitscale.units import doctor


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """What the command prints on stdout."""
    monkeypatch.setattr(sys, "argv", ["unitscale", "doctor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_json_says_what_is_there(capsys, monkeypatch):
    found = json.loads(run(capsys, monkeypatch, "--json"))
    assert found["torch"] == torch.__version__
    assert found["device"] == ("cuda:0" if torch.cuda.device_count() else "cpu")
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["bf16_products"]["speed"] > 0
    rounding = {name for name, recipe in RECIPES.items() if recipe.rounds}
    assert {row["recipe"] for row in found["recipes"]} == rounding


def test_table_names_every_recipe_and_its_executor(capsys, monkeypatch):
    printed = run(capsys, monkeypatch)
    for recipe in RECIPES.values():
        assert recipe.name in printed or not recipe.rounds
    for text in ("cpu:", "gpu", "BF16 products on", "C++ compiler", "triton", "emulated"):
        assert text in printed


@pytest.mark.parametrize(
    ("quick", "fp8", "expected"),
    [
        (False, False, {"fp8": "emulated", "fp8-bf16": "emulated", "bf16": "emulated"}),
        (True, False, {"fp8": "emulated", "fp8-bf16": "bf16", "bf16": "bf16"}),
        (True, True, {"fp8": "scaled_mm", "fp8-bf16": "scaled_mm", "bf16": "bf16"}),
    ],
)
def test_recipes_are_judged_by_the_device(monkeypatch, quick, fp8, expected):
    monkeypatch.setattr(executor, "quick_bf16_products", lambda d: Ability(quick, "of BF16"))
    monkeypatch.setattr(executor, "fp8_products", lambda d: Ability(fp8, "of FP8"))
    rows = {row["recipe"]: row for row in doctor.recipe_rows(torch.device("cuda", 0))}
    assert {name: rows[name]["float32 model"] for name in expected} == expected
    assert rows["fp16"]["float32 model"] == "emulated"
    reasons = {"emulated": "scaled_mm: of FP8; bf16: ", "bf16": "of BF16", "scaled_mm": "of FP8"}
    assert rows["fp8"]["why"].startswith(reasons[expected["fp8"]])


@pytest.mark.parametrize("variable", [None, "TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_compilation_that_is_disabled_is_said(capsys, monkeypatch, variable):
    for name in doctor.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    # TORCH_COMPILE_DISABLE is read when torch is imported, and sets this:
    is_set = variable != "TORCHDYNAMO_DISABLE"
    with torch._dynamo.config.patch(disable=is_set):
        model = torch.nn.Linear(2, 2)
        captured = []
        model.compile(backend=lambda graph, inputs: captured.append(graph) or graph.forward)
        model(torch.ones(1, 2))
        assert not captured  # what doctor says is so
        by = variable or "torch._dynamo.config.disable"
        found = json.loads(run(capsys, monkeypatch, "--json"))["compilation"]
        assert found == {"enabled": False, "why": f"{by} turns torch.compile off"}
        assert f"DISABLED: {by} turns torch.compile off" in run(capsys, monkeypatch)


def test_compilation_that_is_on_is_said(capsys, monkeypatch):
    for name in doctor.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    with torch._dynamo.config.patch(disable=False, suppress_errors=False):
        assert "torch.compile: on; nothing turns" in run(capsys, monkeypatch)
        assert doctor.compilation()["enabled"]
    with torch._dynamo.config.patch(disable=False, suppress_errors=True):
        assert "suppress_errors runs what cannot be captured" in doctor.compilation()["why"]


def test_compiler_is_the_one_of_the_environment_if_it_names_one(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert doctor.cpp_compiler() is None
    compiler = tmp_path / "mine"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert doctor.cpp_compiler() == str(compiler)


def test_missing_package_has_no_version():
    assert doctor.package_version("no_such_package_at_all") is None
    assert doctor.package_version("numpy") is not None
