"""What else is in a batch does not change a sequence's logits: static scales make it so."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deploy.conftest import Served
from deploy.tiny import distance, ids, logits, stock
from unitscale import deploy

FIRST = slice(0, 1)


def alone_and_beside_others(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The logits of one sequence by itself, and as the first of sixteen."""
    tokens = ids(rows=16)
    return logits(model, tokens[FIRST]), logits(model, tokens)[FIRST]


def with_dynamic_scales(llama: Served, folder: Path) -> Path:
    """The same weights; each input rounded at the amax of its whole batch, as many servers do."""
    shutil.copytree(llama.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["dynamic"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if not name.endswith("input_scale")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_static_scales_are_invariant(llama: Served) -> None:
    alone, beside = alone_and_beside_others(stock(llama.folder))
    assert torch.equal(alone, beside)


def test_our_evaluation_is_invariant(llama: Served) -> None:
    alone, beside = alone_and_beside_others(deploy.load(llama.folder))
    assert torch.equal(alone, beside)


def test_dynamic_scales_of_whole_tensors_are_not(llama: Served, tmp_path: Path) -> None:
    """By about what FP8 itself moves the logits: values are rounded on another grid."""
    alone, beside = alone_and_beside_others(stock(with_dynamic_scales(llama, tmp_path / "out")))
    moved = distance(llama.ours, llama.full_precision)
    assert distance(beside, alone) > moved / 10
