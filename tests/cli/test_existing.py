"""`unitscale compare --model` with models that are left as they are."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from train.tiny import text_corpus
from unitscale.cli import main

TINY = ["--batch-size", "4", "--sequence-length", "16", "--set", "eval_windows=8", "--steps", "6"]
OWN = """
from torch import nn
def build(width=8):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, 256))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text and a model in it."""
    text_corpus(tmp_path)
    (tmp_path / "own_model_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a comparison."""
    line = ["unitscale", "compare", "--data", "text.txt", *TINY, *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, *capsys.readouterr()


def test_unmodified_model_under_several_recipes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    small = ["--width", 32, "--depth", 1, "--recipes", "fp32,fp32-units,fp8-none,fp8"]
    code, out, err = run(monkeypatch, capsys, "--model", "gpt2", *small, "--json", "--out", "out")
    assert code == 0, err
    results = json.loads(out)
    assert results["model"] == "gpt2"
    assert results["model_config"] == {"context": 16, "width": 32, "depth": 1}
    runs = {r["recipe"]: r for r in results["runs"]}
    assert runs["fp32-units"]["valid_loss"] == runs["fp32"]["valid_loss"]
    assert runs["fp8"]["share_in_range"]["gradients"] == 1.0
    assert runs["fp8-none"]["share_in_range"] == runs["fp32"]["share_in_range"]
    assert len({r["lr"] for r in results["runs"]}) == 1
    assert "gpt2 model" in (folder / "out" / "report.html").read_text()


def test_own_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "own_model_of_test:build", "--set", "model.width=16"]
    code, out, err = run(monkeypatch, capsys, *model, "--recipes", "fp32,fp8", "--out", "out")
    assert code == 0, err
    assert "own_model_of_test:build model on text.txt" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no_model_of_test:build"], "there is no module 'no_model_of_test'"),
        (["--model", "own_model_of_test:bild"], "has no 'bild'; did you mean 'build'?"),
        (["--model", "own_model_of_test:build", "--width", 64], "--width 64 is not an option"),
        (["--model", "gpt2", "--norm", "post"], "--norm post is not an option of gpt2"),
        (["--model", "llama", "--unit-lr", 1], "--unit-lr has no meaning for llama"),
        (["--model", "gpt2", "--set", "model.hedas=3"], "unexpected keyword argument 'hedas'"),
        (["--model", "gpt2", "--recipes", "fp9"], "Did you mean 'fp8'?"),
        (["--set", "existing=lama"], "existing is 'lama'; expected gpt2, llama or MODULE:FACTORY"),
        (["--set", "remeasure=often"], "remeasure is 'often'; expected 'geometric'"),
    ],
)
def test_wrong_model_is_one_line_and_exit_code_2(
    arguments: list[Any],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.iterdir())
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


ODD = """
import torch
from torch import nn
import torch.nn.functional as F
def made(result, symbols=256, takes_targets=True):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(symbols, 8), nn.Linear(8, symbols)
        def logits(self, ids):
            return self.out(self.table(ids))
    class Loss(Model):
        def forward(self, ids, targets):
            logits = self.logits(ids)
            return result(logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    class Logits(Model):
        def forward(self, ids):
            return result(self.logits(ids), None)
    return Loss if takes_targets else Logits
pair = made(lambda logits, loss: (logits, loss))
named = made(lambda logits, loss: {"loss": loss})
nothing = made(lambda logits, loss: None)
many = made(lambda logits, loss: loss + logits)
detached = made(lambda logits, loss: loss.detach())
few = made(lambda logits, loss: loss, symbols=128)
tuple_of_logits = made(lambda logits, loss: (logits,), takes_targets=False)
pooled = made(lambda logits, loss: logits.mean(1), takes_targets=False)
few_logits = made(lambda logits, loss: logits, symbols=128, takes_targets=False)
narrow = made(lambda logits, loss: logits[..., :100], takes_targets=False)
no_model = lambda: [1]
good = made(lambda logits, loss: loss[None])
"""


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("pair", "returned a tuple of 2 for ids and targets; expected the mean loss, one number"),
        ("named", "returned a dict of 'loss' for ids and targets; expected the mean loss"),
        ("nothing", "returned nothing for ids and targets"),
        ("many", "returned a tensor of shape [4, 16, 256] for ids and targets"),
        ("detached", "returned a tensor of shape [] without a gradient"),
        ("few", "index out of range in self; expected a model of at least 256 symbols"),
        ("few_logits", "index out of range in self; expected a model of at least 256 symbols"),
        ("tuple_of_logits", "a tuple of 1 for ids; expected logits of shape [4, 16, 256 or more]"),
        ("pooled", "returned a tensor of shape [4, 256] for ids"),
        ("narrow", "returned a tensor of shape [4, 16, 100] for ids"),
        ("no_model", "returned a list; expected a torch.nn.Module"),
    ],
)
def test_model_without_a_loss_is_one_line_and_exit_code_2(
    factory: str,
    message: str,
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "odd_model_of_test.py").write_text(ODD)
    line = ["unitscale", command, "--data", "text.txt", *TINY]
    line += ["--model", f"odd_model_of_test:{factory}", "--out", "out"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1), err
    assert f"odd_model_of_test:{factory} " in err
    assert message in err


def test_loss_of_one_element_is_a_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd_model_of_test.py").write_text(ODD)
    model = ["--model", "odd_model_of_test:good", "--recipes", "fp32", "--out", "out"]
    code, _, err = run(monkeypatch, capsys, *model)
    assert code == 0, err


@pytest.mark.parametrize("command", ["compare", "train", "analyse"])
def test_model_that_fails_before_its_first_step_leaves_the_folder_free(
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "images_of_test.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Conv2d(3, 8, 3)\n"
    )
    wrong, right = "images_of_test:build", "own_model_of_test:build"
    common = ["--data", "text.txt", *TINY]
    before = set(folder.iterdir())
    for model, expected in ((wrong, 1), (right, 0)):
        line = ["unitscale", command, "--out", "new/out"]
        line += [model] if command == "analyse" else [*common, "--model", model]
        line += ["--recipes", "fp32"] if command == "compare" else []
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stopped:
            main()
        _, err = capsys.readouterr()
        assert (stopped.value.code or 0) == expected, err
        if expected:
            assert {p for p in folder.iterdir() if p.name != "__pycache__"} == before
            assert err.count("\n") == 1
            if command != "analyse":
                assert "a language model over byte ids" in err
                assert "docs/existing_models.md" in err
    assert (folder / "new" / "out" / "report.html").exists()
