"""`unitscale export`: the model of a run, served as the run evaluated it; wrong input in a line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers

from train.tiny import text_corpus
from unitscale.cli import main
from unitscale.train import TrainConfig, train
from unitscale.train.trained import trained_model


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["unitscale", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def trained(folder: Path, recipe: str, **changes: object) -> Path:
    """A run of three steps of a tiny Llama."""
    settings = {
        "existing": "llama",
        "model": {"width": 32, "depth": 1},
        "steps": 3,
        "batch_size": 2,
        "sequence_length": 16,
        "eval_windows": 2,
    }
    config = TrainConfig(recipe=recipe, **(settings | changes))  # type: ignore[arg-type]
    train(config, text_corpus(folder), folder / "run")
    return folder / "run"


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
    refused(1, "has no checkpoint.safetensors yet", unfinished)
    (unfinished / "checkpoint.safetensors").write_bytes(b"0")
    refused(1, "is not a checkpoint of this run", unfinished)
    (unfinished / "config.json").write_text('{"version": 1}')
    refused(1, "is of version 1 of a run's files; expected 2", unfinished)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("fp32", "has no units; call us.unit_scale"),
        ("mxfp8", "recipe 'mxfp8' was applied without units"),
    ],
)
def test_a_run_of_another_recipe_is_refused(
    recipe: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = trained(tmp_path, recipe, steps=1)
    assert run(monkeypatch, folder, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
