"""The files of an export: whole or absent, with those of a tokenizer."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import unitscale as us
from deploy.small import Gated, evaluated
from deploy.tiny import ids, logits, made
from disk import largest_file
from unitscale import deploy


class Tokenizer:
    """What an export needs of one."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def save_pretrained(self, folder: Path) -> None:
        if self.fails:
            raise OSError("no space left on device")
        (folder / "tokenizer.json").write_text("{}")


def test_tokenizer_files_are_passed_through(tmp_path: Path) -> None:
    model = evaluated(Gated())
    deploy.export(model, tmp_path / "a", "safetensors", tokenizer=Tokenizer())
    deploy.export(model, tmp_path / "b", "safetensors", tokenizer=tmp_path / "a")
    assert (tmp_path / "b/tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [(3, "tokenizer is a int; expected one of"), (".", "has no files of a tokenizer")],
)
def test_a_wrong_tokenizer_is_refused_first(tokenizer: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        deploy.export(evaluated(Gated()), tmp_path / "out", "safetensors", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        deploy.export(
            evaluated(Gated()), tmp_path / "out", "safetensors", tokenizer=Tokenizer(fails=True)
        )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path: Path) -> None:
    model = evaluated(Gated())
    (tmp_path / "out").mkdir()
    deploy.export(model, tmp_path / "out", "safetensors")
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="out is not empty; choose a new folder"):
        deploy.export(model, tmp_path / "out", "safetensors")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ValueError, match="is a file; expected a new folder"):
        deploy.export(model, next(iter(before)), "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "gguf"}, "format is 'gguf'; expected one of compressed-tensors, modelopt"),
        ({"differences": "hide"}, "differences is 'hide'; expected 'refuse' or 'report'"),
        ({"max_shard_size": "large"}, "max_shard_size is 'large'; expected bytes, or a text"),
        ({"max_shard_size": 0}, "max_shard_size is 0; expected bytes"),
    ],
)
def test_unknown_words_are_refused(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        deploy.export(evaluated(Gated()), tmp_path / "out", **options)


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "ahead").symlink_to(tmp_path / "later" / "deep")
    model = evaluated(Gated())
    for name in ("link", "ahead"):
        deploy.export(model, tmp_path / name, "safetensors")
        assert (tmp_path / name).is_symlink()
    names = {"model.safetensors", "unitscale.json"}
    assert {file.name for file in (tmp_path / "real").iterdir()} == names
    assert {file.name for file in (tmp_path / "later/deep").iterdir()} == names


def test_a_folder_that_cannot_be_made_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is to be inside of .*file, which is a file"):
        deploy.export(Gated(), tmp_path / "file/a/b", "safetensors")
    monkeypatch.setattr(os, "access", lambda *_: False)  # who is root may write anywhere
    with pytest.raises(PermissionError, match="cannot be written; choose another folder"):
        deploy.export(Gated(), tmp_path / "a", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def served() -> Any:
    """A Llama that can be exported."""
    model = made("llama")
    us.unit_scale(model, "fp8-serve")
    logits(model, ids())
    return model


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(
    served: Any, tmp_path: Path
) -> None:
    own = evaluated(Gated())
    before = dict(served.config.__dict__)
    for size in (100, 1500, 5000):
        with pytest.raises(OSError, match="File too large"), largest_file(size):
            deploy.export(served, tmp_path / "out")
    with (
        pytest.raises(OSError, match=r"out cannot be written: .*File too large"),
        largest_file(1500),
    ):
        deploy.export(own, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []
    assert served.config.__dict__ == before


def test_what_is_half_written_says_that_its_weights_are_codes(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed removes nothing: its folder must not load as plain weights."""
    seen: list[Any] = []

    def stop(tensors: Any, file: Any, **_: Any) -> None:
        seen.append(json.loads((Path(file).parent / "config.json").read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        deploy.export(served, tmp_path / "out")
    assert seen[0]["quantization_config"]["quantization_status"] == "compressed"
    assert list(tmp_path.iterdir()) == []


class Named(Gated):
    """Tensors of its own, under the names of scales and with a mask of infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_scale = nn.Parameter(torch.ones(3))
        self.norm = nn.ParameterDict({"input_scale": torch.ones(2)})
        self.register_buffer("mask", torch.full((2, 2), -torch.inf))


class Clashing(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj.register_buffer("weight_scale", torch.ones(1))


class Remembering(Gated):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError(state)


def test_a_model_may_have_tensors_of_these_names(tmp_path: Path) -> None:
    deploy.export(evaluated(Named()), tmp_path / "out", "safetensors")
    model = Named()
    with torch.no_grad():
        model.weight_scale.zero_()
    again = deploy.load(tmp_path / "out", model)
    assert again.weight_scale.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Clashing, r"the model has 'up_proj\.weight_scale' of its own, and a reader takes"),
        (Remembering, r"'_extra_state' in the model's state is a dict; a file of tensors"),
    ],
)
def test_what_a_file_of_tensors_cannot_hold_is_refused(
    kind: type[nn.Module], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        deploy.export(evaluated(kind()), tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_servers_get_no_tensor_of_the_name_of_a_scale(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(served.model.norm._buffers, "input_scale", torch.ones(1))
    with pytest.raises(ValueError, match=r"the model has 'model\.norm\.input_scale' of its own"):
        deploy.export(served, tmp_path / "out")


class Derived(transformers.LlamaForCausalLM):
    """A class that no loader knows; it takes the one that the configuration names."""


def test_a_class_of_ones_own_is_named(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "__class__", Derived)
    with pytest.raises(ValueError, match="Derived is no class of transformers, so that loaders"):
        deploy.export(served, tmp_path / "out")
    done = deploy.export(served, tmp_path / "out", differences="report")
    assert len(done.differences) == 1


def test_tensors_that_a_loader_would_drop_are_named(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(served.model.norm._buffers, "steps", torch.zeros(1))
    words = r"'model\.norm\.steps' is \(1,\) in this model, and not there in the one that loaders"
    with pytest.raises(ValueError, match=words):
        deploy.export(served, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_save_pretrained_refuses_is_one_line(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.generation_config, "temperature", 0.3)  # without do_sample
    with pytest.raises(ValueError, match="the save_pretrained of LlamaForCausalLM fails") as error:
        deploy.export(served, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_export_in_many_files_is_read_back(served: Any, tmp_path: Path) -> None:
    done = deploy.export(served, tmp_path / "out", max_shard_size="4KB")
    assert len(list(done.folder.glob("*.safetensors"))) > 2
    assert torch.equal(logits(deploy.load(done.folder), ids()), logits(served, ids()))
