"""`unitscale compress`: a folder that loads, a run that trains on in FP8 at units carried over."""

import json
import shlex
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from growth import tiny
from train.tiny import text_corpus
from unitscale.cli import main
from unitscale.compress.target import parse_target
from unitscale.compress.written import compress_folder
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
        "model": {"width": 32, "depth": 2, "heads": 4},
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model over bytes, in a folder of transformers."""
    made = tmp_path_factory.mktemp("folder") / "model"
    tiny.llama(vocab_size=256).save_pretrained(made)
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_compressed_run_trains_on_in_fp8_with_optimizer_and_units(tmp_path, monkeypatch, capsys):
    large, out, text = trained(tmp_path, "fp8"), tmp_path / "small", tmp_path / "text.txt"
    asked = ("--target", "width=16,depth=1", "--data", text, "--steps", 2, "--samples", 4)
    assert run(monkeypatch, "compress", large, *asked, "--out", out, "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["folder"] == str(out)
    before, after = done["report"]["parameters"]
    assert after < before / 2
    tensors, state = read_checkpoint(out / "checkpoint.safetensors")
    _, old = read_checkpoint(large / "checkpoint.safetensors")
    assert (state["step"], state["units"]["step"]) == (0, 3)
    names = state["units"]["units"].keys()
    assert names < old["units"]["units"].keys()
    assert len(names) > 40
    assert any(name.startswith("optimizer.") for name in tensors)
    assert shlex.join(done["command"]).startswith("unitscale train --resume --out")
    assert str(text) in done["command"]
    assert run(monkeypatch, *done["command"][1:], "--threads", 1) == 0
    steps = [record for record in read_log(out / "log.jsonl") if "loss" in record]
    assert steps[0]["coverage"] == 1.0
    assert "measured" not in steps[0]


@pytest.mark.parametrize("importance", ["activations", "magnitude", "random"])
def test_only_a_plan_is_printed_and_nothing_is_written(
    plain, tmp_path, monkeypatch, capsys, importance
):
    before = contents(plain)
    asked = ("--target", "width=16", "--importance", importance, "--samples", 4)
    data = ("--data", plain.parent / "text.txt")
    command = ("compress", plain, *asked, *data, "--out", tmp_path / "out", "--plan")
    assert run(monkeypatch, *command) == 0
    assert "to: width 16, depth 2, 2 heads of 8" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert contents(plain) == before


def test_a_folder_is_distilled_in_fp8_and_loads(folder, tmp_path, monkeypatch, capsys):
    before, out = contents(folder), tmp_path / "small"
    text_corpus(tmp_path)
    asked = ("--target", "60%", "--samples", 4, "--data", tmp_path / "text.txt")
    more = ("--distil-steps", 4, "--recipe", "fp8", "--lr", 0.01)
    assert run(monkeypatch, "compress", folder, *asked, *more, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "distilled: " in shown
    assert "loss " in shown
    large = tiny.llama(vocab_size=256)
    small = type(large).from_pretrained(out)
    counts = [sum(p.numel() for p in one.parameters()) for one in (large, small)]
    assert 0.5 < counts[1] / counts[0] <= 0.6
    assert small(input_ids=torch.zeros(1, 4, dtype=torch.int64)).logits.isfinite().all()
    assert json.loads((out / "compress.json").read_text())["from"] == "model"
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("width=64", (), "width is 64, and the model's is 32"),
        ("width=20", (), "the heads of this run would be 2.5"),
        ("ffn=10", (), "in a run of llama sizes follow the width"),
        ("size=3", (), "the target says 'size=3'; expected sizes as"),
        ("depth=1,depth=2", (), "the target says 'depth=2'"),
        ("120%", (), "the target is '120%'"),
        ("small", (), "the target is 'small'"),
        ("depth=1", ("--importance", "taste"), "importance is 'taste'"),
        ("depth=1", ("--distil-steps", 3), "is a run: it trains on by"),
        ("depth=1", ("--lr", 0), "lr is 0.0"),
        ("depth=1", ("--lr", "inf"), "lr is inf"),
        ("depth=1", ("--seed", 2**32), "seed is 4294967296"),
        ("depth=1", ("--recipe", "fp9"), "fp9"),
    ],
)
def test_bad_input_is_one_line(plain, tmp_path, monkeypatch, capsys, target, more, message):
    before = contents(plain)
    command = ("compress", plain, "--target", target, "--importance", "magnitude", *more)
    assert run(monkeypatch, *command, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert contents(plain) == before


def test_folders_that_cannot_be_compressed_are_refused(folder, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "compress", folder, "--target", "50%", "--out", folder) == 2
    assert "holds something already" in capsys.readouterr().err
    out = ("--out", tmp_path / "out")
    assert run(monkeypatch, "compress", tmp_path / "no", "--target", "50%", *out) == 2
    assert "is no folder" in capsys.readouterr().err
    command = ("compress", folder, "--target", "ffn=9", "--steps", 3)
    assert run(monkeypatch, *command, *out) == 2
    assert "steps is 3, and" in capsys.readouterr().err
    for name, message in (("vit", "is a vit, which reads no text"), ("bert", "has no tokenizer")):
        tiny.MODELS[name]().save_pretrained(tmp_path / name)
        assert run(monkeypatch, "compress", tmp_path / name, "--target", "ffn=9", *out) == 2
        assert message in capsys.readouterr().err
    vit = ("compress", tmp_path / "vit", "--target", "ffn=9", "--importance", "magnitude")
    assert run(monkeypatch, *vit, *out) == 0


def test_distilling_twice_gives_the_same_model_with_dropout_too(tmp_path):
    source = tmp_path / "model"
    tiny.gpt2(vocab_size=256, resid_pdrop=0.5).save_pretrained(source)
    found = []
    for name in ("one", "two"):
        torch.manual_seed(len(found))
        compress_folder(source, tmp_path / name, "ffn=24", samples=8, distil_steps=2)
        found.append((tmp_path / name / "model.safetensors").read_bytes())
        assert torch.initial_seed() == len(found) - 1  # that of the process is left alone
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_of_few_bits_is_distilled_in_float32(dtype, folder, tmp_path):
    """At 1e-4 a step of AdamW is below half a unit in the last place of most BF16 weights."""
    given = tmp_path / "given"
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(given)
    made = [
        compress_folder(given, tmp_path / f"{steps}", "60%", samples=4, distil_steps=steps, lr=1e-4)
        for steps in (0, 20)
    ]
    cut, taught = (AutoModelForCausalLM.from_pretrained(one.folder, dtype="auto") for one in made)
    assert taught.dtype == dtype
    assert all(p.isfinite().all() for p in taught.parameters())
    moved = [(a != b).sum() for a, b in zip(cut.parameters(), taught.parameters(), strict=True)]
    # Twenty steps of at most 1e-4 move up to 2e-3; of weights near 0.2 a BF16 unit is 1e-3.
    assert sum(moved) > 0.3 * sum(p.numel() for p in taught.parameters() if p.dim() > 1)


def test_targets_are_sizes_shares_or_numbers():
    assert parse_target("width=48, ffn=9", 100) == {"width": 48, "ffn": 9}
    assert parse_target("50%", 1001) == {"parameters": 500}
    assert parse_target("1.5M", 10**7) == {"parameters": 1_500_000}
    assert parse_target("2000", 10**7) == {"parameters": 2000}
