"""Exports that a stock loader loads wrongly, most of them without an error: each fault by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deploy.conftest import Served
from deploy.tiny import T, distance, ids, logits
from unitscale import deploy

Tensors = dict[str, Tensor]
DOWN = "model.layers.0.mlp.down_proj"


def status_removed(config: Any, tensors: Tensors) -> None:
    del config["quantization_config"]["quantization_status"]


def input_scale_removed(config: Any, tensors: Tensors) -> None:
    del tensors[f"{DOWN}.input_scale"]


def head_not_ignored(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["ignore"] = []


def layer_ignored(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["ignore"].append("re:.*down_proj")


def method_changed(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["quant_method"] = "fp8"


def no_dimension(config: Any, tensors: Tensors) -> None:
    tensors[f"{DOWN}.weight_scale"] = tensors[f"{DOWN}.weight_scale"].squeeze()


def no_power_of_two(config: Any, tensors: Tensors) -> None:
    tensors[f"{DOWN}.input_scale"] *= 3


def nan_code(config: Any, tensors: Tensors) -> None:
    tensors[f"{DOWN}.weight"].view(torch.uint8)[0, 0] = 0x7F


def weight_in_bfloat16(config: Any, tensors: Tensors) -> None:
    tensors[f"{DOWN}.weight"] = tensors[f"{DOWN}.weight"].to(torch.bfloat16)


def dynamic(config: Any, tensors: Tensors) -> None:
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"]["dynamic"] = True


def tied(config: Any, tensors: Tensors) -> None:
    config["tie_word_embeddings"] = True
    config["quantization_config"]["ignore"] = []
    for name in ("weight_scale", "input_scale"):
        tensors[f"lm_head.{name}"] = torch.ones(1)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)


def unquantized(config: Any, tensors: Tensors) -> None:
    del config["quantization_config"]


def targets_changed(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = []


def group_lost(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["config_groups"]["group_0"] = None


def class_ignored(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["ignore"] += ["Linear"]


def bad_expression(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["ignore"] += ["re:("]


def ignore_lost(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["ignore"] = None


def norm_removed(config: Any, tensors: Tensors) -> None:
    del tensors["model.norm.weight"]


def head_removed(config: Any, tensors: Tensors) -> None:
    del tensors["lm_head.weight"]


FAULTS: dict[str, Callable[[Any, Tensors], None]] = {
    "quantization_status is None; expected 'compressed'": status_removed,
    f"{DOWN}.input_scale is missing": input_scale_removed,
    "'lm_head' has no scales and is not in 'ignore'": head_not_ignored,
    f"'{DOWN}' has codes and is in 'ignore'": layer_ignored,
    "quant_method is 'fp8'; expected": method_changed,
    f"{DOWN}.weight_scale is torch.float32 of shape (); expected": no_dimension,
    f"{DOWN}.input_scale is [": no_power_of_two,
    f"{DOWN}.weight holds NaN": nan_code,
    f"{DOWN}.weight is in torch.bfloat16; expected float8_e4m3fn": weight_in_bfloat16,
    "input_activations have {'dynamic': True}; expected {'dynamic': False}": dynamic,
    "'lm_head' has codes of its own, and tie_word_embeddings is true": tied,
    "the targets of group_0 are []; expected ['Linear']": targets_changed,
    "config_groups: group_0 is None; expected an object": group_lost,
    "'ignore' has the class 'Linear'": class_ignored,
    "'ignore' has 're:(', which is no regular expression": bad_expression,
    "'ignore' is None; expected a list": ignore_lost,
    "tensors are missing: model.norm.weight (1 in all)": norm_removed,
    "tensors are missing: lm_head.weight (1 in all)": head_removed,
    "has no quantization_config, so it is no FP8 export": unquantized,
}


def changed(llama: Served, folder: Path, change: Callable[[Any, Tensors], None]) -> Path:
    """A copy of the export with a fault in it."""
    shutil.copytree(llama.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("message", FAULTS)
def test_each_fault_is_named(message: str, llama: Served, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "out", FAULTS[message])
    for read in (deploy.verify, deploy.load):
        with pytest.raises(ValueError, match="out") as error:
            read(folder)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_an_export_without_a_fault_is_taken(llama: Served, tmp_path: Path) -> None:
    deploy.verify(changed(llama, tmp_path / "out", lambda config, tensors: None))


def test_codes_without_a_status_load_as_garbage(llama: Served, tmp_path: Path) -> None:
    """Why `verify` is there: codes are 2^6 times the weights, and the loader raises nothing."""
    folder = changed(llama, tmp_path / "out", status_removed)
    served = T.AutoModelForCausalLM.from_pretrained(folder)
    assert distance(logits(served, ids()), llama.ours) > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is no folder"),
        (lambda folder: folder.mkdir(), "config.json cannot be read"),
        (lambda folder: write(folder, "{"), "config.json cannot be read"),
        (lambda folder: write(folder, "[]"), "config.json holds a list"),
        (
            lambda folder: write(folder, '{"quantization_config": {}}'),
            "model.safetensors cannot be read",
        ),
    ],
)
def test_what_is_no_export_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        deploy.verify(tmp_path / "out")


def write(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(text)
