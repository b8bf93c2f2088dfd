"""`unitscale quantize`: a model of a factory or of a folder, written; wrong input in a line."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers as T

from deploy.tiny import ids, logits, made, stock
from train.tiny import text_corpus
from unitscale import deploy
from unitscale.cli import main
from unitscale.train import TrainConfig, train

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), torch.ones(2, 8)

def alone():
    return build()[0]

def batches():
    torch.manual_seed(1)
    return [torch.randn(3, 8) for _ in range(2)]

def nan():
    return [torch.full((3, 8), torch.nan)]

def drawn():
    return nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8)

def broken():
    raise RuntimeError("no disk")
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    return tmp_path / "mine.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["unitscale", "quantize", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_a_factory(factory, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    given = ("mine.py:build", "--recipe", "w8a8", "--calibration-data", "mine.py:batches")
    assert run(monkeypatch, *given, "--out", out, "--sensitivity", "--json") == 0
    printed = capsys.readouterr()
    row = json.loads(printed.out)
    assert (row["recipe"], row["format"], len(row["rows"])) == ("int8", "safetensors", 2)
    assert {found["path"] for found in row["sensitivity"]} == {"0", "2"}
    assert "calibrate: 2/2" in printed.err
    assert "sensitivity: 2/2" in printed.err
    spaces: dict = {}
    exec(FACTORY, spaces)
    expected = deploy.quantize(spaces["alone"](), "int8", spaces["batches"]())
    x = torch.randn(3, 8)
    assert torch.equal(deploy.load(out, spaces["alone"]())(x), expected(x))


def test_a_factory_that_draws_its_weights_gives_the_same_folder_twice(
    factory, tmp_path, monkeypatch
):
    found = []
    for name in ("one", "two"):
        torch.manual_seed(len(name) + len(found))
        asked = ("mine.py:drawn", "--recipe", "int8", "--out", tmp_path / name)
        assert run(monkeypatch, *asked) == 0
        files = sorted((tmp_path / name).glob("*.safetensors"))
        found.append([path.read_bytes() for path in files])
    assert found[0] == found[1] != []


def test_a_folder_of_transformers(tmp_path, monkeypatch, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    made("bert").save_pretrained(source)
    words = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), *(f"w{i}" for i in range(40))]
    (source / "vocab.txt").write_text("\n".join(words))
    T.BertTokenizer(str(source / "vocab.txt")).save_pretrained(source)
    text = tmp_path / "text.txt"
    text.write_text("w1 w2 w3\n\nw4 w5\n" + "w6 w7\n" * 20)
    given = (source, "--recipe", "fp8", "--calibration-data", text, "--samples", 12)
    assert run(monkeypatch, *given, "--out", out, "--target", "0.1") == 0
    printed = capsys.readouterr().out
    assert "fp8: 6 layers" in printed
    assert "full precision: classifier" in printed
    assert (out / "vocab.txt").exists() or (out / "tokenizer.json").exists()
    assert torch.equal(logits(stock(out), ids()), logits(deploy.load(out), ids()))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("mine.py:build", "--recipe", "fp9"), 2, "unknown recipe 'fp9'"),
        (("mine.py:none", "--recipe", "fp8"), 2, "none"),
        (("mine.py:alone", "--recipe", "fp8"), 2, "has no units; give --calibration-data, or"),
        (("mine.py:broken", "--recipe", "fp8"), 1, "mine.py:broken failed: RuntimeError: no disk"),
        (
            ("mine.py:build", "--recipe", "fp8", "--calibration-data", "mine.py:nan"),
            2,
            "batch 0 holds NaN in",
        ),
        (("mine.py:build", "--recipe", "fp8", "--calibration-data", "x.txt"), 2, "'x.txt'; of a"),
        (("mine.py:build", "--recipe", "fp8", "--clip", "max"), 2, "clip is 'max'"),
        (("mine.py:build", "--recipe", "fp8", "--skip", "9"), 2, "skip='9' matches no layer"),
        (("mine.py:build", "--recipe", "fp8", "--target", "0"), 2, "above the target 0"),
        (("mine.py:build", "--recipe", "fp8", "--samples", "0"), 2, "--samples is 0; expected 1"),
        (("mine.py:build", "--recipe", "fp8", "--length", "8"), 2, "--length is of a text: a"),
        (("mine.py:build", "--recipe", "fp8", "--format", "gguf"), 2, "format is 'gguf'"),
        (
            ("mine.py:build", "--recipe", "fp8", "--format", "compressed-tensors"),
            2,
            "no model of transformers inside",
        ),
    ],
)
def test_wrong_input_is_one_line(arguments, code, message, factory, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(monkeypatch, *arguments, "--out", out) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("unitscale: ")
    assert message in last
    assert not out.exists()


def test_a_folder_that_is_full(factory, tmp_path, monkeypatch, capsys):
    given = ("mine.py:build", "--recipe", "fp8", "--out", tmp_path)
    assert run(monkeypatch, *given) == 2
    assert "is not empty" in capsys.readouterr().err


SETTINGS = {"existing": "llama", "model": {"width": 32, "depth": 1}, "eval_windows": 2}
SIZES = {"steps": 1, "batch_size": 2, "sequence_length": 16}


def test_the_model_of_a_run(tmp_path, monkeypatch, capsys):
    source, text = tmp_path / "run", tmp_path / "text.txt"
    train(TrainConfig(recipe="fp32", **SETTINGS, **SIZES), text_corpus(tmp_path), source)
    text.write_text("hello world\nthis is it, in a line that is longer than the model's windows\n")
    longer = ("--calibration-data", text, "--length", 17, "--out", tmp_path / "out")
    assert run(monkeypatch, source, "--recipe", "fp8", *longer) == 2
    assert "--length is 17, and the model of" in capsys.readouterr().err
    data = ("--calibration-data", text, "--target", "0.1")
    assert run(monkeypatch, source, "--recipe", "fp8", *data, "--out", tmp_path / "out") == 0
    assert "fp8: 7 layers" in capsys.readouterr().out
    assert stock(tmp_path / "out").config.vocab_size == 256


@pytest.mark.slow
def test_the_units_of_a_run(tmp_path, monkeypatch, capsys):
    """Without data its scales are its units; with data they are calibrated."""
    source, text = tmp_path / "run", tmp_path / "text.txt"
    train(TrainConfig(recipe="fp8-serve", **SETTINGS, **SIZES), text_corpus(tmp_path), source)
    text.write_text("hello world\nthis is it\n")
    assert run(monkeypatch, source, "--recipe", "fp8", "--out", tmp_path / "units") == 0
    data = ("--calibration-data", text)
    assert run(monkeypatch, source, "--recipe", "fp8", *data, "--out", tmp_path / "amax") == 0
    units, amax = (deploy.load(tmp_path / name) for name in ("units", "amax"))
    path = "model.layers.0.mlp.down_proj"
    one, other = (model.get_submodule(path).input_scale for model in (units, amax))
    assert one.log2() == one.log2().round()
    assert one != other
