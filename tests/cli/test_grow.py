"""`unitscale grow`: a folder that loads and computes the same, a run that trains on in FP8."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
import transformers

from growth import tiny
from train.tiny import text_corpus
from unitscale.cli import main
from unitscale.train import TrainConfig, train
from unitscale.train.checkpoint import read_checkpoint
from unitscale.train.run_log import read_log


def run(monkeypatch, *arguments):
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["unitscale", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def trained(folder, recipe, **changes):
    """A run of three steps of a tiny model of `transformers`."""
    settings = {
        "existing": "llama",
        "model": {"width": 16, "depth": 1},
        "steps": 3,
        "batch_size": 2,
        "sequence_length": 16,
        "eval_windows": 2,
    }
    config = TrainConfig(recipe=recipe, **(settings | changes))
    train(config, text_corpus(folder), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain"), "fp32")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_grown_run_trains_on_in_fp8_with_optimizer_and_units(tmp_path, monkeypatch, capsys):
    small, out = trained(tmp_path, "fp8"), tmp_path / "grown"
    asked = ("--width", 32, "--steps", 2, "--out", out)
    assert run(monkeypatch, "grow", small, *asked, "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["folder"] == str(out)
    assert done["proof"]["difference"] <= 1e-5 * done["proof"]["largest"]
    tensors, state = read_checkpoint(out / "checkpoint.safetensors")
    _, before = read_checkpoint(small / "checkpoint.safetensors")
    assert (state["step"], state["units"]["step"]) == (0, 3)
    old, new = before["units"]["units"], state["units"]["units"]
    assert new.keys() == old.keys()
    assert any(name.startswith("optimizer.") for name in tensors)
    assert shlex.join(done["command"]).startswith("unitscale train --resume --out")
    assert run(monkeypatch, *done["command"][1:], "--threads", 1) == 0
    log = read_log(out / "log.jsonl")
    losses = [record["loss"] for record in log if "loss" in record]
    last = [record["loss"] for record in read_log(small / "log.jsonl") if "loss" in record][-1]
    assert losses[0] == pytest.approx(last, abs=0.3)  # another text, the same function
    steps = [record for record in log if "loss" in record]
    assert steps[0]["coverage"] == 1.0
    assert "measured" not in steps[0]


def test_the_printed_command_names_the_text_and_all_that_the_run_was_given(
    tmp_path, monkeypatch, capsys
):
    given = {"optimizer": "sgd", "lr": 0.25, "betas": (0.5, 0.75), "clip_norm": 1.5}
    given |= {"model": {"width": 16, "depth": 1, "heads": 4}, "eval_every": 2}
    small, out = trained(tmp_path, "fp32", **given), tmp_path / "grown"
    monkeypatch.chdir(tmp_path)  # as it was trained: --data text.txt
    command = ("grow", "run", "--width", 32, "--steps", 1, "--out", "grown", "--noise", 0)
    assert run(monkeypatch, *command) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "--resume" in line]
    assert len(printed) == 1
    assert run(monkeypatch, *shlex.split(printed[0])[1:], "--threads", 1) == 0
    assert read_log(out / "log.jsonl")
    (tmp_path / "text.txt").rename(small / "other.txt")
    assert run(monkeypatch, *command[:-3], "again") == 0
    said = capsys.readouterr().out
    assert "--data text.txt" in said
    assert "(the run's text.txt was not found here: give its path as --data)" in said


def test_only_a_plan_is_printed_and_nothing_is_written(plain, tmp_path, monkeypatch, capsys):
    before = contents(plain)
    out = tmp_path / "out"
    assert run(monkeypatch, "grow", plain, "--width", 32, "--out", out, "--plan") == 0
    assert "width 32, depth 1, 4 heads of 8" in capsys.readouterr().out
    assert not out.exists()
    assert contents(plain) == before


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((), "the target is the model's own shape"),
        (("--width", 8), "width is 8, and the model's is 16 already"),
        (("--width", 24), "a run of llama cannot be padded"),
        (("--width", 36), "4.5, which do not divide"),
        (("--ffn", 100), "in a run ffn grows as the width does"),
        (("--width", 32, "--method", "net2net"), "method is 'net2net'"),
    ],
)
def test_what_a_run_cannot_become_is_one_line(plain, tmp_path, monkeypatch, capsys, asked, message):
    before = contents(plain)
    assert run(monkeypatch, "grow", plain, "--out", tmp_path / "out", *asked) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert contents(plain) == before


def test_folders_that_hold_something_else_are_refused(plain, tmp_path, monkeypatch, capsys):
    for source, message in (
        (tmp_path / "none", "is no folder"),
        (tmp_path, "has no config.json"),
    ):
        assert run(monkeypatch, "grow", source, "--width", 32, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert run(monkeypatch, "grow", plain, "--width", 32, "--out", plain) == 2
    assert "holds something already" in capsys.readouterr().err
    other = trained(tmp_path, "fp32", existing=None, model={"width": 16, "depth": 1})
    assert run(monkeypatch, "grow", other, "--width", 32, "--out", tmp_path / "out") == 2
    assert "is a run of attention; growth knows those of --model gpt2 and llama" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_a_folder_of_transformers_gives_one_that_loads(name, tmp_path, monkeypatch, capsys):
    small = tiny.MODELS[name]()
    source, out = tmp_path / "small", tmp_path / "grown"
    small.save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    before = contents(source)
    assert run(monkeypatch, "grow", source, "--width", 18, "--out", out) == 0
    assert "function preserved" in capsys.readouterr().out
    grown = type(small).from_pretrained(out)
    batch = tiny.batch_for(small)
    with torch.no_grad():
        difference = (small.eval()(**batch).logits - grown.eval()(**batch).logits).abs().max()
    assert difference <= 1e-5 * 4
    assert (out / "tokenizer.json").exists()
    assert json.loads((out / "growth.json").read_text())["from"] == "small"
    assert contents(source) == before
    assert isinstance(grown, transformers.PreTrainedModel)
    assert run(monkeypatch, "grow", source, "--width", 24, "--steps", 9, "--out", out / "x") == 2
    assert "steps is 9, and" in capsys.readouterr().err


def test_an_unknown_architecture_is_refused_by_name(tmp_path, monkeypatch, capsys):
    config = transformers.DistilBertConfig(vocab_size=8, dim=4, n_layers=1, n_heads=1, hidden_dim=4)
    transformers.DistilBertForMaskedLM(config).save_pretrained(tmp_path / "small")
    capsys.readouterr()
    out = Path(tmp_path / "out")
    assert run(monkeypatch, "grow", tmp_path / "small", "--width", 8, "--out", out) == 2
    assert "DistilBertForMaskedLM of model_type 'distilbert'" in capsys.readouterr().err
    assert not out.exists()
