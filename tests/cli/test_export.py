"""`unitscale export`: the model of a run, served as the run evaluated it; wrong input in a line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers

from train.tiny import text_corpus
from unitscale.cli import main
from unitscale.train import Spread, TrainConfig, train
from unitscale.train.checkpoint import load_checkpoint
from unitscale.train.initial import initial_state
from unitscale.train.run_folder import claimed
from unitscale.train.sharded import save_sharded
from unitscale.train.trained import run_of, trained_model
from unitscale.train.units import apply_numerics


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["unitscale", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def trained(folder: Path, recipe: str, **changes: object) -> Path:
    """A run of three steps of a tiny Llama."""
    train(configured(recipe, **changes), text_corpus(folder), folder / "run")
    return folder / "run"


def configured(recipe: str, **changes: object) -> TrainConfig:
    """Its configuration."""
    settings: dict[str, object] = {
        "existing": "llama",
        "model": {"width": 32, "depth": 1},
        "steps": 3,
        "batch_size": 2,
        "sequence_length": 16,
        "eval_windows": 2,
    }
    return TrainConfig(recipe=recipe, **(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("served"), "fp8-serve")


def test_the_model_of_a_run_is_served_as_it_is_evaluated(
    served: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, served, "--out", out, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["layers"], row["ignored"], row["differences"]) == (7, ["lm_head"], [])
    assert (row["step"], row["folder"]) == (3, str(out))
    model, step = trained_model(served)
    assert step == 3
    ids = torch.arange(16)[None] + 64
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        logits = loaded(ids).logits
        loss = model(ids, ids)
    assert torch.equal(torch.nn.functional.cross_entropy(logits[0], ids[0]), loss)
    assert run(monkeypatch, served, "--out", out) == 2
    error = capsys.readouterr().err  # after the bars of the loader
    assert error.endswith(f"unitscale: export: {out} is not empty; choose a new folder\n")


def test_what_cannot_be_exported_is_one_line(
    served: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(code: int, words: str, folder: Path, *options: str) -> None:
        assert run(monkeypatch, folder, "--out", tmp_path / "out", *options) == code
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    refused(2, "holds no run of `unitscale train`", tmp_path)
    refused(2, "format is 'gguf'; expected one of", served, "--format", "gguf")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(served, unfinished)
    (unfinished / "checkpoint.safetensors").unlink()
    refused(1, "has no checkpoint yet; train some steps first", unfinished)
    (unfinished / "checkpoint.safetensors").write_bytes(b"0")
    refused(1, "is not a checkpoint of this run", unfinished)
    (unfinished / "config.json").write_text('{"version": 1}')
    refused(1, "is of version 1 of a run's files; expected 2", unfinished)


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("fp32", {}, "was trained with recipe 'fp32', which gives a model no units"),
        ("mxfp8", {}, "was trained with recipe 'mxfp8', which gives a model no units"),
        ("fp8", {"existing": None}, "is a run of the built-in byte-level model, whose scales are"),
        ("fp32", {"existing": None}, "which no server has: train one with --model llama --recipe"),
    ],
)
def test_a_run_without_units_to_export_is_refused(
    recipe: str,
    changes: dict[str, object],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    with claimed(folder, configured(recipe, **changes), text_corpus(tmp_path), resume=False):
        (folder / "log.jsonl").touch()  # it has begun
    assert run(monkeypatch, folder, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_checkpoint_of_several_ranks_is_exported_too(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = tmp_path / "spread"
    shutil.copytree(served, spread)
    config, name = run_of(spread)
    state = initial_state(config)
    state.run = name
    load_checkpoint(state, spread / "checkpoint.safetensors")
    apply_numerics(config, state.model, state.units)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        save_sharded(state, spread, Spread())
    finally:
        dist.destroy_process_group()
    assert not (spread / "checkpoint.safetensors").exists()
    for source, out in ((served, "one"), (spread, "several")):
        assert run(monkeypatch, source, "--out", tmp_path / out) == 0
    one, several = (
        (tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "several")
    )
    assert one == several
