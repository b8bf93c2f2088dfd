"""Exports that a stock loader loads wrongly, most of them without an error: each fault by name."""

import json
import math
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


def norm_of_nan(config: Any, tensors: Tensors) -> None:
    tensors["model.norm.weight"][3] = torch.nan


def head_of_infinity(config: Any, tensors: Tensors) -> None:
    tensors["lm_head.weight"][0, 0] = torch.inf


def embedding_in_half(config: Any, tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].half()


def dtype_changed(config: Any, tensors: Tensors) -> None:
    config["dtype"] = "bfloat16"


def norm_in_codes(config: Any, tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)


def norm_of_another_shape(config: Any, tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(31)


def head_tied_and_stored(config: Any, tensors: Tensors) -> None:
    config["tie_word_embeddings"] = True


def scale_is(value: float, name: str = "input_scale") -> Callable[[Any, Tensors], None]:
    """A fault: a scale of one layer has another value."""

    def change(config: Any, tensors: Tensors) -> None:
        tensors[f"{DOWN}.{name}"] = torch.tensor([value])

    return change


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
    "model.norm.weight holds NaN or infinity": norm_of_nan,
    "lm_head.weight holds NaN or infinity": head_of_infinity,
    "model.embed_tokens.weight is in torch.float16; expected torch.float32": embedding_in_half,
    "model.norm.weight is in torch.float32; expected torch.bfloat16, as config.json": dtype_changed,
    "model.norm.weight is in torch.float8_e4m3fn; expected torch.float32": norm_in_codes,
    "model.norm.weight has the shape (31,); expected (32,)": norm_of_another_shape,
    "'lm_head' has a weight of its own, and tie_word_embeddings is true": head_tied_and_stored,
    f"{DOWN}.input_scale is 2^127; expected 2^-117 to 2^119": scale_is(2.0**127),
    f"{DOWN}.input_scale is 2^-140; expected 2^-117 to 2^119": scale_is(2.0**-140),
    f"{DOWN}.weight_scale is 2^8; expected 2^-15 to 2^7": scale_is(256.0, "weight_scale"),
    f"{DOWN}.input_scale is [-2.0]; expected one power of two": scale_is(-2.0),
    f"{DOWN}.input_scale is [0.0]; expected one power of two": scale_is(0.0),
    f"{DOWN}.input_scale is [nan]; expected one power of two": scale_is(float("nan")),
}


NONSENSE: list[tuple[str, Any, str]] = [
    ("architectures", "LlamaForCausalLM", "has no architecture None"),
    ("architectures", ["Trainer"], "has no architecture 'Trainer'"),
    ("architectures", [3], "has no architecture 3"),
    ("model_type", "bert", "model_type is 'bert'; expected 'llama'"),
    ("hidden_size", "wide", "cannot read the configuration: StrictDataclassFieldValidationError"),
    ("hidden_size", 10**9, "has the shape"),
    ("num_attention_heads", 0, "cannot read the configuration: ZeroDivisionError"),
    ("num_attention_heads", -1, "cannot make a LlamaForCausalLM of it: RuntimeError"),
    ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, and the files have"),
    ("hidden_act", "none", "cannot make a LlamaForCausalLM of it: KeyError"),
    ("rms_norm_eps", float("nan"), "NaN is no number of JSON"),
    ("dtype", "int64", "dtype is 'int64'; expected one of float32, bfloat16"),
    ("dtype", {}, "dtype is {}; expected one of float32, bfloat16"),
]


@pytest.mark.parametrize(("name", "value", "message"), NONSENSE)
def test_a_configuration_of_nonsense_is_one_line(
    name: str, value: Any, message: str, llama: Served, tmp_path: Path
) -> None:
    folder = changed(llama, tmp_path / "out", lambda config, tensors: config.update({name: value}))
    for read in (deploy.verify, deploy.load):
        with pytest.raises(ValueError, match=r"config\.json|model") as error:
            read(folder)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": 3}}, "'a' is in 3; expected a file beside it"),
        ({"weight_map": {"a": "../model.safetensors"}}, "expected a file beside it"),
        ({"weight_map": {"a": "lost.safetensors"}}, "lost.safetensors cannot be read"),
    ],
)
def test_a_wrong_index_is_refused(
    content: Any, message: str, llama: Served, tmp_path: Path
) -> None:
    folder = changed(llama, tmp_path / "out", lambda config, tensors: None)
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        deploy.verify(folder)


def as_modelopt(config: Any, tensors: Tensors) -> None:
    config["quantization_config"]["quant_method"] = "modelopt"
    config["quantization_config"]["quant_algo"] = "FP8"


def test_the_file_beside_is_read_too(llama: Served, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "out", as_modelopt)
    with pytest.raises(ValueError, match=r"hf_quant_config\.json cannot be read"):
        deploy.verify(folder)
    beside = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": beside}))
    deploy.verify(folder)
    beside["exclude_modules"] = []
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": beside}))
    with pytest.raises(ValueError, match=r"exclude_modules is \[\]; expected \['lm_head'\]"):
        deploy.verify(folder)


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
    apart = distance(logits(served, ids()), llama.ours)
    assert apart > 1 or math.isnan(apart)  # scales that it lacks are memory that nobody wrote


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
