"""`unitscale doctor`."""

import json
import sys

import pytest
import torch

from unitscale.cli import main
from unitscale.cli.doctor import recipe_line, total_line
from unitscale.gemm import executor
from unitscale.gemm.capability import Machine
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


def test_each_product_says_what_multiplies_it(monkeypatch):
    """`fp8-rowwise-hp` keeps grad_weight in BF16; `mus` its read-out, which says nothing of it."""
    machine = Machine("NVIDIA H100", "cuda", (9, 0), cuda=(12, 9))
    monkeypatch.setattr(executor, "machine_of", lambda d: machine)
    monkeypatch.setattr(executor, "quick_bf16_products", lambda d: Ability(True, "of BF16"))
    monkeypatch.setattr(executor, "fp8_products", lambda d: Ability(True, "of FP8"))
    rows = {row["recipe"]: row for row in doctor.recipe_rows(torch.device("cuda", 0))}
    by = lambda name: [one["by"] for one in rows[name]["products"]["bfloat16 model"]]
    assert by("fp8-rowwise-hp") == ["scaled_mm row", "scaled_mm row", "emulated"]
    assert by("mus") == ["scaled_mm tensor"] * 3
    assert by("nvfp4") == ["emulated"] * 3
    assert "NVFP4 products need 10.0" in rows["nvfp4"]["why"]
    assert recipe_line(rows["fp8-rowwise-hp"]).endswith(
        "output scaled_mm row, grad_input scaled_mm row, grad_weight emulated"
    )
    assert recipe_line(rows["fp8"]).split() == ["fp8", "scaled_mm", "tensor"]


def test_each_recipe_has_one_line_under_its_reason(capsys, monkeypatch):
    printed = run(capsys, monkeypatch).splitlines()
    start = next(i for i, line in enumerate(printed) if line.startswith("recipes on"))
    names = [line.split()[0] for line in printed[start:] if line.startswith("    ")]
    assert sorted(names) == sorted(name for name, recipe in RECIPES.items() if recipe.rounds)
    reasons = [line for line in printed[start:] if line.startswith("  ") and line[2] != " "]
    assert len(reasons) < len(names) / 2
    assert all(line.endswith(":") for line in reasons)


def test_shapes_are_judged(capsys, monkeypatch):
    arguments = ["--shapes", "4096x4096x8192,16x4096x4096", "--shapes", "4096x60x40"]
    found = json.loads(run(capsys, monkeypatch, *arguments, "--json", "--device-name", "h200"))
    assert [row["shape"] for row in found["shapes"]] == [
        "4096x4096x8192",
        "16x4096x4096",
        "4096x60x40",
    ]
    assert [row["verdict"] for row in found["shapes"]] == ["yes", "no", "no"]
    assert found["device"] == "H200 SXM"
    printed = run(capsys, monkeypatch, *arguments)
    for text in ("4096x4096x8192: YES. The products save", "operations a byte", "H100", "both"):
        assert text in printed
    if not torch.cuda.is_available():
        assert "this machine has no FP8 hardware" in printed


def test_device_without_fp8_is_judged_too(capsys, monkeypatch):
    printed = run(capsys, monkeypatch, "--shapes", "8192x8192x8192", "--device-name", "a100")
    assert "8192x8192x8192: NO. The A100 SXM has no FP8 products" in printed


MODEL = """
from torch import nn


def build(width=64):
    return nn.Sequential(nn.Linear(width, 4 * width), nn.Linear(4 * width, width))


def conv():
    return nn.Conv2d(3, 3, 3)
"""


@pytest.mark.parametrize("name", ["my_own_model", "random"])
def test_layers_of_a_model_in_a_file_are_judged(capsys, monkeypatch, tmp_path, name):
    """Also where the file's name is that of a module that is imported already."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("my_own_model", "model_in_random", "its_neighbour"):
        monkeypatch.setitem(sys.modules, module, None)  # so that it is removed again
        monkeypatch.delitem(sys.modules, module)
    file = tmp_path / f"{name}.py"
    file.write_text("import its_neighbour\n" + MODEL)
    (tmp_path / "its_neighbour.py").touch()
    arguments = ["--model", f"{file}:build", "--set", "model.width=8192", "--tokens", "4096"]
    found = json.loads(run(capsys, monkeypatch, *arguments, "--json"))
    assert [row["shape"] for row in found["shapes"]] == ["4096x8192x32768", "4096x32768x8192"]
    assert [row["layers"] for row in found["shapes"]] == [["0"], ["1"]]
    printed = run(capsys, monkeypatch, "--model", f"{file}:build")
    assert "8192x64x256 (0): NO." in printed
    assert "All layers together" in printed


def test_what_is_left_out_is_printed(capsys, monkeypatch, tmp_path):
    text = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 3, 3), "
    (tmp_path / "with_conv_of_test.py").write_text(text + "nn.Linear(9, 9))\n")
    name = f"{tmp_path / 'with_conv_of_test.py'}:build"
    found = json.loads(run(capsys, monkeypatch, "--model", name, "--json"))
    assert [one["name"] for one in found["left_out"]] == ["0.weight"]
    printed = run(capsys, monkeypatch, "--model", name)
    assert "Left out: 0.weight [3, 3, 3, 3], 50.0% of the weights: torch multiplies" in printed


def test_small_products_are_no_zeros(capsys, monkeypatch):
    """Their time is that of starting three kernels."""
    printed = run(capsys, monkeypatch, "--shapes", "32x64x64", "--device-name", "h100")
    (row,) = [line for line in printed.splitlines() if line.strip().startswith("32x64x64 ")]
    bf16, fp8, units = row.split()[2:5]
    assert 9.0 <= float(fp8) <= float(bf16) < 9.1
    assert units == "0.50x"  # three more launches, for the casts
    assert "0.0 us" not in printed


def test_one_recipe_alone_also_of_ones_own(capsys, monkeypatch, tmp_path):
    text = "from dataclasses import replace\nfrom unitscale.recipes import RECIPES\n"
    text += "MINE = replace(RECIPES['nvfp4'], name='mine')\n"
    (tmp_path / "recipe_of_doctor.py").write_text(text)
    name = f"{tmp_path / 'recipe_of_doctor.py'}:MINE"
    found = json.loads(run(capsys, monkeypatch, "--recipe", name, "--recipe", "fp8", "--json"))
    assert [row["recipe"] for row in found["recipes"]] == ["mine", "fp8"]


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_layers_of_a_known_model_are_judged(capsys, monkeypatch, model):
    pytest.importorskip("transformers")
    arguments = ["--model", model, "--set", "model.width=4096", "--set", "model.depth=2"]
    found = json.loads(run(capsys, monkeypatch, *arguments, "--json"))
    by_verdict = {row["verdict"]: row for row in found["shapes"]}
    assert by_verdict["no"]["layers"] == ["lm_head"]
    assert sum(row["count"] for row in found["shapes"]) == {"gpt2": 9, "llama": 15}[model]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "4096x4096"], "'4096x4096'; expected MxKxN"),
        (["--shapes", "4x4x4,"], "''; expected MxKxN"),
        (["--shapes", "0x4x4"], "from 1 to 2^40"),
        (["--shapes", "4x4x4", "--device-name", "h1000"], "Did you mean 'h100'?"),
        (["--device-name", "h100"], "--device-name goes with --shapes or --model"),
        (["--set", "model.width=4"], "--set goes with --model"),
        (["--shapes", "4x4x4", "--tokens", "4"], "--tokens goes with --model"),
        (["--shapes", "4x4x4", "--set", "model.width=4"], "--set goes with --model"),
        (["--model", "lama"], "expected gpt2, llama, MODULE:FACTORY"),
        (["--model", "no_such_module_here:f"], "no module 'no_such_module_here'"),
        (["--model", "no/such/file.py:f"], "there is no file no/such/file.py"),
        (["--model", "BROKEN:f"], "broken.py failed: KeyError: 'broken'"),
        (["--model", "torch.nn:Flatten"], "has no linear layer"),
        (["--model", "torch.nn:Linear"], "cannot be called with {}"),
        (["--model", "torch.nn:Linear", "--set", "width=4"], "expected model.NAME=VALUE"),
        (["--model", "torch.nn:Flatten", "--tokens", "0"], "--tokens is 0"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    broken = tmp_path / "broken.py"
    broken.write_text("raise KeyError('broken')")
    arguments = [text.replace("BROKEN", str(broken)) for text in arguments]
    monkeypatch.setattr(sys, "argv", ["unitscale", "doctor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith("unitscale: ")
    assert err.count("\n") == 1
    assert message in err


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


def test_nothing_that_pays_has_no_gain_where_it_pays() -> None:
    ways = {"bf16_s": 1.0, "torchao": {"everywhere": 0.9, "where yes": 1.0}}
    no, yes = ({"shapes": [{"verdict": v}], "total": ways} for v in ("no", "yes"))
    assert "0.90x everywhere, and no layer where it pays" in total_line(no)
    assert "0.90x everywhere, 1.00x where it pays" in total_line(yes)
