"""Exports of every format, read back into the evaluation that they came from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import unitscale as us
from deploy.conftest import Served
from deploy.small import Gated, Twice, evaluated, inputs
from deploy.tiny import distance, ids, logits, made
from unitscale import deploy


@torch.no_grad()
def result(model: nn.Module) -> torch.Tensor:
    return model(inputs())


def test_an_export_evaluates_here_as_it_did(llama: Served) -> None:
    model = deploy.load(llama.folder)
    assert torch.equal(logits(model, ids()), llama.ours)
    units = {row.path: (row.weight_log2, row.input_log2) for row in us.units.layer_units(model)}
    assert units == llama.units
    # Codes are E4M3FN: a weight is off by 1/16 of itself at most, by 2 to 4 % on the whole.
    for name, value in model.state_dict().items():
        if "_proj" in name:
            assert 0.02 < distance(value, llama.state[name]) < 0.04
        else:
            assert torch.equal(value, llama.state[name])


def test_graphs_that_come_later_have_the_units_too(llama: Served) -> None:
    """With labels, of another length, with gradients: none of them measures."""
    model = deploy.load(llama.folder)
    out = model(ids(), labels=ids())
    assert torch.equal(out.logits, llama.ours)
    assert {u.input_log2 for u in us.units.layer_units(model)} == {
        x for _, x in llama.units.values()
    }


def test_modelopt_has_the_same_tensors_in_its_own_words(tmp_path: Path) -> None:
    model = made("bert")
    us.unit_scale(model, "fp8-serve")
    ours = logits(model, ids())
    deploy.export(model, tmp_path / "one")
    deploy.export(model, tmp_path / "two", "modelopt")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(x.view(torch.uint8), two[n].view(torch.uint8)) for n, x in one.items())
    config = json.loads((tmp_path / "two/config.json").read_text())["quantization_config"]
    content = json.loads((tmp_path / "two/hf_quant_config.json").read_text())
    beside = content["quantization"]
    assert content["producer"]["name"] == config["producer"]["name"] == "modelopt"
    assert (config["quant_method"], config["quant_algo"]) == ("modelopt", "FP8")
    assert beside["exclude_modules"] == config["ignore"] == ["bert.pooler.dense", "classifier"]
    assert torch.equal(logits(deploy.load(tmp_path / "two"), ids()), ours)


def test_any_module_in_our_own_format(tmp_path: Path) -> None:
    model = evaluated(Gated())
    done = deploy.export(model, tmp_path / "out", "safetensors")
    assert (done.layers, done.ignored, done.differences) == (3, (), ())
    content = json.loads((tmp_path / "out/unitscale.json").read_text())
    assert content["element"] == "E4M3FN"
    assert content["layers"].keys() == {"gate_proj", "up_proj", "down_proj"}
    torch.manual_seed(1)
    again = deploy.load(tmp_path / "out", Gated())
    assert torch.equal(result(again), result(model))
    assert not again.training
    assert done.bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


def test_a_wrong_model_or_none_is_refused(tmp_path: Path, llama: Served) -> None:
    deploy.export(evaluated(Gated()), tmp_path / "out", "safetensors")
    with pytest.raises(ValueError, match="does not say what the model is"):
        deploy.load(tmp_path / "out")
    with pytest.raises(ValueError, match=r"has no 'gate_proj\.weight', or the model has none"):
        deploy.load(tmp_path / "out", Twice())
    with pytest.raises(ValueError, match="of another model: missing"):
        deploy.load(tmp_path / "out", nn.ModuleDict({**Gated()._modules, "more": nn.Linear(2, 2)}))
    with pytest.raises(ValueError, match="names its own architecture"):
        deploy.load(llama.folder, Gated())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2; expected 1"),
        ({"layers": {}}, "names no layers"),
        ({"layers": {"up_proj": {"weight_log2": 1.5, "input_log2": 0}}}, "'up_proj' has the units"),
        ({"layers": {"up_proj": {"weight_log2": 1}}}, "'up_proj' has the units"),
        ({"layers": {"up_proj": {"weight_log2": 8, "input_log2": 0}}}, "from -15 to 7"),
        ({"layers": {"up_proj": {"weight_log2": 0, "input_log2": 120}}}, "from -117 to 119"),
        ({"layers": {"up_proj": {"weight_log2": 7, "input_log2": 0}}}, r"json says 2\^7"),
    ],
)
def test_damaged_units_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    deploy.export(evaluated(Gated()), tmp_path / "out", "safetensors")
    file = tmp_path / "out/unitscale.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        deploy.load(tmp_path / "out", Gated())


def test_our_export_of_a_module_that_is_none_of_transformers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no model of transformers inside; servers load one"):
        deploy.export(evaluated(Gated()), tmp_path / "out")


def test_a_model_in_another_dtype_is_refused(tmp_path: Path) -> None:
    model = us.unit_scale(Gated().eval().bfloat16(), "fp8-serve")
    with torch.no_grad():
        ours = model(inputs().bfloat16())
    deploy.export(model, tmp_path / "out", "safetensors")
    words = r"is in float32, and was exported in bfloat16; .*model\.to\(torch\.bfloat16\)"
    plain = Gated()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        deploy.load(tmp_path / "out", plain)
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    with torch.no_grad():
        assert torch.equal(
            deploy.load(tmp_path / "out", plain.bfloat16())(inputs().bfloat16()), ours
        )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("down_proj.bias", lambda x: x * torch.nan, r"'down_proj\.bias' holds NaN or infinity"),
        ("down_proj.bias", lambda x: x / 0, r"'down_proj\.bias' holds NaN or infinity"),
        ("down_proj.weight", lambda x: x.float(), "is in torch.float32; expected codes"),
    ],
)
def test_tensors_that_were_changed_are_refused(
    name: str, change: Any, message: str, tmp_path: Path
) -> None:
    deploy.export(evaluated(Gated()), tmp_path / "out", "safetensors")
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: change(tensors[name])}, file)
    with pytest.raises(ValueError, match=message):
        deploy.load(tmp_path / "out", Gated())


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path):
    for model in (None, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"nowhere is no folder; expected one that `export`"):
            deploy.load(tmp_path / "nowhere", model)
