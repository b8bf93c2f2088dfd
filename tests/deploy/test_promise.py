"""Train = serve: a stock loader computes the logits of our evaluation, to the bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unitscale as us
from deploy.conftest import Served
from deploy.tiny import (
    HEADS,
    MODELS,
    MORE,
    T,
    assert_loads_whole,
    distance,
    ids,
    logits,
    made,
    stock,
)
from unitscale import deploy

ROUNDING = 0.25
"""Far more than E4M3FN moves logits by: each operand by at most 1/16 of itself."""


def assert_equal_when_served(model: Any, folder: Path) -> None:
    """Its evaluation at units is that of its export, and neither is that of full precision."""
    plain = logits(model, ids())
    us.unit_scale(model, "fp8-serve")
    ours = logits(model, ids())
    deploy.export(model, folder)
    deploy.verify(folder)
    assert torch.equal(logits(stock(folder), ids()), ours)
    assert 0 < distance(ours, plain) < ROUNDING


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("llama", "qwen3_moe")])
def test_a_stock_loader_gives_our_logits(name: str, tmp_path: Path) -> None:
    assert_equal_when_served(made(name), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_a_stock_loader_gives_our_logits_of_more_models(name: str, tmp_path: Path) -> None:
    assert_equal_when_served(made(name), tmp_path / "out")


def test_the_promise_fails_for_a_model_that_rounds_nothing(tmp_path: Path) -> None:
    model = made("bert")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.weight)
    with pytest.raises(AssertionError):
        assert_equal_when_served(model, tmp_path / "out")


def test_a_loader_that_misses_a_tensor_fails() -> None:
    assert_loads_whole({"missing_keys": set(), "unexpected_keys": set()})
    with pytest.raises(AssertionError, match="missing_keys"):
        assert_loads_whole({"missing_keys": {"lm_head.weight"}})


def test_a_trained_model_is_served_as_it_is_evaluated(llama: Served) -> None:
    assert torch.equal(logits(stock(llama.folder), ids()), llama.ours)
    assert 0 < distance(llama.ours, llama.full_precision) < ROUNDING
    assert (llama.export.layers, llama.export.ignored) == (7, ("lm_head",))


PROCESS = """
import sys
import torch
from transformers import AutoModelForCausalLM
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
with torch.no_grad():
    logits = model(torch.load(out)).logits
assert not any("unitscale" in name for name in sys.modules)
torch.save(logits, out)
"""


def test_another_process_without_this_library_gives_our_logits(
    llama: Served, tmp_path: Path
) -> None:
    torch.save(ids(), tmp_path / "tensor.pt")
    subprocess.run(
        [sys.executable, "-c", PROCESS, str(llama.folder), str(tmp_path / "tensor.pt")],
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert torch.equal(torch.load(tmp_path / "tensor.pt"), llama.ours)


def test_in_bfloat16_too(tmp_path: Path) -> None:
    """Made in its dtype: converted, its rotary frequencies would be rounded as well."""
    torch.manual_seed(0)
    config = T.Qwen3Config(**HEADS)
    model = T.Qwen3ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    us.unit_scale(model, "fp8-serve")
    ours = logits(model, ids())
    deploy.export(model, tmp_path / "out")
    served = stock(tmp_path / "out")
    assert served.dtype == ours.dtype == torch.bfloat16
    assert torch.equal(logits(served, ids()), ours)
    converted = T.Qwen3ForCausalLM(config).to(torch.bfloat16).eval()
    converted.load_state_dict(model.state_dict())
    us.unit_scale(converted, "fp8-serve")
    logits(converted, ids())
    with pytest.raises(ValueError, match=r"inv_freq' is torch.bfloat16, and a loader computes"):
        deploy.export(converted, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def edited(llama: Served, folder: Path, change: Any) -> Path:
    """A copy of the export whose tensors are changed."""
    shutil.copytree(llama.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_another_input_scale_gives_other_logits(llama: Served, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.down_proj.input_scale"] *= 256  # most values turn subnormal

    folder = edited(llama, tmp_path / "out", change)
    assert distance(logits(stock(folder), ids()), llama.ours) > 1e-6


def test_scales_of_no_dimension_do_not_load(llama: Served, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_scale")]:
            tensors[name] = tensors[name].squeeze()

    with pytest.raises(RuntimeError, match=r"size|shape|dimension"):
        logits(stock(edited(llama, tmp_path / "out", change)), ids())


def test_scales_are_powers_of_two_that_servers_take(llama: Served) -> None:
    tensors = load_file(llama.folder / "model.safetensors")
    scales = {name: x for name, x in tensors.items() if name.endswith("_scale")}
    assert len(scales) == 2 * llama.export.layers
    for name, scale in scales.items():
        assert (scale.dtype, tuple(scale.shape)) == (torch.float32, (1,))
        mantissa, exponent = torch.frexp(scale)
        assert mantissa.item() == 0.5
        if name.endswith("weight_scale"):
            assert -15 <= exponent.item() - 1 <= 7
            codes = tensors[name.removesuffix("_scale")]
            assert codes.dtype == torch.float8_e4m3fn
            assert not codes.float().isnan().any()


def joined_by_a_server(tensors: dict[str, torch.Tensor], paths: list[str]) -> int:
    """How many codes change where a server requantizes through float16 to the largest scale.

    As vLLM does: vllm/model_executor/layers/quantization/utils/w8a8_utils.py.
    """
    scales = [tensors[f"{path}.weight_scale"].item() for path in paths]
    changed = 0
    for path, scale in zip(paths, scales, strict=True):
        codes = tensors[f"{path}.weight"]
        values = codes.to(torch.float16) * scale
        again = (values / max(scales)).clamp(-448, 448).to(torch.float8_e4m3fn)
        changed += int((again.view(torch.uint8) != codes.view(torch.uint8)).sum())
    return changed


def test_a_server_that_joins_layers_changes_no_code(llama: Served) -> None:
    tensors = load_file(llama.folder / "model.safetensors")
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    for paths in (
        [f"{attention}.{name}_proj" for name in "qkv"],
        [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
    ):
        for scale in ("weight_scale", "input_scale"):
            assert len({tensors[f"{path}.{scale}"].item() for path in paths}) == 1
        assert joined_by_a_server(tensors, paths) == 0
    tensors[f"{mlp}.up_proj.weight_scale"] *= 2**6
    assert joined_by_a_server(tensors, paths) > 0


def test_the_format_without_negative_zero_has_the_same_values_at_twice_the_scale() -> None:
    """E4M3FNUZ: servers on such devices double the scales; 0x80 means NaN there."""
    codes = torch.arange(256, dtype=torch.uint8)
    ours = codes.view(torch.float8_e4m3fn).float()
    theirs = codes.view(torch.float8_e4m3fnuz).float() * 2
    finite = ours.isfinite() & (codes != 0x80)
    assert int(finite.sum()) == 253
    assert torch.equal(ours[finite], theirs[finite])


def test_in_shards_too(llama: Served, tmp_path: Path) -> None:
    """A scale in another file than its weight; sizes as the index says."""
    tensors = load_file(llama.folder / "model.safetensors")
    folder = tmp_path / "out"
    shutil.copytree(llama.folder, folder)
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    is_second = {name: name.endswith("_scale") for name in tensors}
    for i, file in enumerate(names):
        part = {name: x for name, x in tensors.items() if is_second[name] == i}
        save_file(part, folder / file, {"format": "pt"})
    size = sum(x.numel() * x.element_size() for x in tensors.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: names[second] for name, second in is_second.items()},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    deploy.verify(folder)
    assert torch.equal(logits(stock(folder), ids()), llama.ours)


@pytest.mark.slow
def test_export_writes_shards_itself(tmp_path: Path) -> None:
    model = made("llama")
    us.unit_scale(model, "fp8-serve")
    ours = logits(model, ids())
    deploy.export(model, tmp_path / "out", max_shard_size=8000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = {tmp_path / "out" / file for file in index["weight_map"].values()}
    assert len(files) > 1
    sizes = [x.numel() * x.element_size() for file in files for x in load_file(file).values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert torch.equal(logits(stock(tmp_path / "out"), ids()), ours)


def test_a_tied_head_stays_in_full_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = T.Qwen3ForCausalLM(T.Qwen3Config(**HEADS, tie_word_embeddings=True)).eval()
    assert_equal_when_served(model, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")


def test_experts_and_router_are_as_they_were(tmp_path: Path) -> None:
    """The loader makes one tensor of a layer's experts, which it never rounds."""
    assert_equal_when_served(made("qwen3_moe"), tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    experts = [name for name in tensors if ".experts." in name or ".gate." in name]
    assert len(experts) == 4 * 3 + 1
    assert all(tensors[name].dtype == torch.float32 for name in experts)
    ignored = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert {"re:.*experts.*", "re:.*gate$"} <= set(ignored["ignore"])
