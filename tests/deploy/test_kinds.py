"""Layers that are no nn.Linear: said when they are quantized, and refused by name at export."""

import json

import pytest
import torch
import transformers as T

import unitscale as us

PATCHES = "vit.embeddings.patch_embeddings.projection"


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    config = T.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    return T.ViTForImageClassification(config).eval()


@pytest.fixture
def pictures() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": torch.randn(2, 3, 8, 8)}]


def test_the_patches_of_a_vit_are_named_and_have_two_ways_out(pictures, tmp_path) -> None:
    model = us.deploy.quantize(vit(), "fp8", pictures)
    said = str(us.deploy.quantization(model))
    assert f'no nn.Linear: {PATCHES} (Conv2d); exported by format="safetensors" alone' in said
    with pytest.raises(ValueError, match="is a Conv2d") as error:
        us.deploy.export(model, tmp_path / "served")
    assert 'format="safetensors"' in str(error.value)
    assert f"skip=['{PATCHES}']" in str(error.value)
    us.deploy.export(model, tmp_path / "own", format="safetensors")
    loaded = us.deploy.load(tmp_path / "own", vit())
    assert loaded(**pictures[0]).logits.equal(model(**pictures[0]).logits)
    described = tmp_path / "own" / "unitscale.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"version": 2}))
    with pytest.raises(ValueError, match=r"of version 2; expected 1; a newer unitscale wrote it"):
        us.deploy.load(tmp_path / "own", vit())


def test_without_the_patches_nothing_is_said(pictures, tmp_path) -> None:
    model = us.deploy.quantize(vit(), "fp8", pictures, skip=[PATCHES])
    said = str(us.deploy.quantization(model))
    assert "no nn.Linear:" not in said
    assert f"full precision: {PATCHES} (skip" in said
    us.deploy.export(model, tmp_path / "served")


def test_a_layer_that_stays_is_called_by_its_whole_name() -> None:
    model = torch.nn.Sequential(us.nn.Conv1d(4, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    us.deploy.quantize(model, "fp8", [torch.randn(2, 4, 6)])
    assert "(unitscale.nn.Conv1d is neither nn.Linear" in str(us.deploy.quantization(model))
