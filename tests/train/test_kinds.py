"""Existing models whose parameters say their kinds: the learning rates of `us.optim`."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from cli.calls import called
from train.tiny import text_corpus, tiny_config
from unitscale import nn as unn
from unitscale.models.next_byte import NextByte
from unitscale.train import train
from unitscale.train.config import TrainConfig
from unitscale.train.initial import OutputError, build_optimizer
from unitscale.train.run_log import read_log

HERE = "train.test_kinds"


def written(width: int = 16) -> nn.Module:
    """A model of this library's modules."""
    return nn.Sequential(
        unn.Embedding(256, width), unn.LayerNorm(width), unn.LinearReadout(width, 256)
    )


def plain(width: int = 16) -> nn.Module:
    """The same of torch's."""
    return nn.Sequential(nn.Embedding(256, width), nn.LayerNorm(width), nn.Linear(width, 256))


def mixed(width: int = 16) -> nn.Module:
    """A model of both."""
    return nn.Sequential(unn.Embedding(256, width), nn.LayerNorm(width), nn.Linear(width, 256))


class Own(nn.Module):
    """A model of a person's own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = us.Parameter(torch.randn(256, 8), "input", width=8)
        self.out = us.Parameter(torch.randn(256, 8), "output")

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids] @ self.out.T / 8


def one_step(name: str, **more: object) -> TrainConfig:
    """A run of one step at the whole rate."""
    own = {"existing": f"{HERE}:{name}", "model": {}, "steps": 1, "warmup_fraction": 0.0}
    return tiny_config(**own, **more)


def test_a_step_is_that_of_our_optimizer(tmp_path: Path) -> None:
    """A bias moves by 2^-7 of the rate, where AdamW of torch moves it by all of it."""
    from safetensors.torch import load_file

    corpus = text_corpus(tmp_path)
    moved = {}
    for name in ("written", "plain"):
        train(one_step(name, lr=0.5), corpus, tmp_path / name)
        moved[name] = load_file(tmp_path / name / "checkpoint.safetensors")["model.model.1.bias"]
    assert torch.allclose(moved["written"].abs(), torch.tensor(0.5 * 2.0**-7), rtol=1e-3)
    assert torch.allclose(moved["plain"].abs(), torch.tensor(0.5), rtol=1e-3)
    first = {name: read_log(tmp_path / name / "log.jsonl")[0] for name in moved}
    assert first["written"]["rates"] == "u-mup"
    assert "rates" not in first["plain"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("make", [written, Own])
def test_groups_are_those_of_our_optimizers(make: type[nn.Module], optimizer: str) -> None:
    model = NextByte(make())
    config = one_step("any", lr=0.5, optimizer=optimizer)
    found = build_optimizer(config, model).param_groups
    ours = (us.optim.SGD if optimizer == "sgd" else us.optim.AdamW)(model, 0.5).param_groups
    assert [(g["kind"], g["lr"], g["lr_factor"]) for g in found] == [
        (g["kind"], g["lr"], g["lr_factor"]) for g in ours
    ]


def test_plain_model_keeps_the_optimizer_of_torch() -> None:
    found = build_optimizer(one_step("any", lr=0.5), NextByte(plain()))
    assert type(found) is torch.optim.AdamW
    assert [group["lr"] for group in found.param_groups] == [0.5]


def test_mixed_model_and_missing_rate_are_refused() -> None:
    with pytest.raises(OutputError, match=r"any: '0.weight' says its kind and '1.weight' does not"):
        build_optimizer(one_step("any", lr=0.5), NextByte(mixed()))
    with pytest.raises(OutputError, match=r"any is written unit-scaled .* give lr \(--lr\)"):
        build_optimizer(one_step("any"), NextByte(written()))


def test_what_does_not_learn_needs_no_kind() -> None:
    model = mixed()
    for layer in (model[1], model[2]):  # type: ignore[index]
        layer.requires_grad_(False)
    assert "kind" in build_optimizer(one_step("any", lr=0.5), NextByte(model)).param_groups[0]


def test_command_line_says_so_and_a_sweep_looks_before_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_corpus(tmp_path)
    tiny = ["--batch-size", "4", "--sequence-length", "16", "--steps", "1"]
    tiny += ["--set", "eval_windows=8", "--data", tmp_path / "text.txt", "--out", tmp_path / "run"]
    line = ["train", "--model", f"{HERE}:written", "--recipe", "fp32", "--lr", "0.5", *tiny]
    code, _, err = called(monkeypatch, capsys, *line)
    assert code == 0, err
    assert "fp32: its parameters say their kinds; each has the rate of u-muP's rules" in err
    grid = tmp_path / "grid.toml"
    grid.write_text(json.dumps(f"{HERE}:mixed").join(["existing = ", "\nlr = [0.5, 1.0]\n"]))
    line = ["sweep", grid, "--data", tmp_path / "text.txt", "--out", tmp_path / "sweep"]
    code, _, err = called(monkeypatch, capsys, *line)
    assert (code, err.count("\n")) == (2, 1), err
    assert "'1.weight' does not" in err
    assert not (tmp_path / "sweep").exists()
