"""A point has one name for one run, and a command that makes exactly that run."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from train.tiny import text_corpus
from unitscale.cli import main
from unitscale.sweep.grid import grid_of
from unitscale.sweep.point import Point
from unitscale.train import TrainConfig


def point(**fields: Any) -> Point:
    (found,) = grid_of(fields).points
    return found


def test_names_do_not_change_from_version_to_version() -> None:
    """A folder of an older version is found again: these were written down."""
    assert point(recipe="fp32").name == NAMES[0]
    assert point(recipe="fp8", lr=0.5, seed=3, model={"width": 64, "heads": 4}).name == NAMES[1]


NAMES = (
    "fp32-attention-w128-d4-lr0.003906-seed0-e8e369f7",
    "fp8-attention-w64-d4-lr0.5-seed3-b2a7fa2e",
)


@pytest.mark.parametrize(
    "change",
    [
        *({"recipe": "fp8-e4m3"}, {"lr": 0.25}, {"seed": 1}, {"steps": 9}, {"betas": [0.8, 0.9]}),
        *({"clip_norm": 1.0}, {"model": {"width": 64}}, {"model": {"layer": "conv"}}),
        *({"model": {"dropout": 0.1}}, {"existing": "llama"}, {"dtype": "bf16"}),
        *({"batch_size": 4}, {"eval_every": 3}, {"remeasure": "once"}),
    ],
)
def test_every_setting_is_part_of_the_name(change: dict[str, Any]) -> None:
    assert point(**{"recipe": "fp8"} | change).name != point(recipe="fp8").name


def test_option_of_a_model_of_ones_own_has_no_default_of_ours() -> None:
    one = point(existing="my.code:build", model={"width": 128})
    assert one.name != point(existing="my.code:build").name


def test_name_is_a_safe_file_name() -> None:
    name = point(existing="my.code:build", recipe="fp8-cscale(3)", model={"n": "a/b c"}).name
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", name)
    long = point(existing="m" * 300 + ":build", model={"n": 1})
    assert len(long.name) < 80


POINTS: list[dict[str, Any]] = [
    {"recipe": "fp32"},
    {"recipe": "fp8", "lr": 1 / 3, "seed": 2**64 - 1, "steps": 12},
    {"lr": 1e-300, "clip_norm": 1, "betas": [0.5, 0.25], "weight_decay": 0.1, "eval_every": 2},
    {"model": {"layer": "conv", "width": 32, "depth": 1, "bias": True, "dropout": 0.1}},
    {"model": {"residual": "fixed", "tau": 0.25, "norm": "post", "heads": 4, "activation": "relu"}},
    {"existing": "llama", "recipe": "bf16", "dtype": "bf16", "remeasure": "drift"},
    {"existing": "gpt2", "model": {"width": 32, "heads": 4}, "inner": "eager"},
    {"existing": "made_for_points:build", "model": {"text": "1 'x'", "number": 1, "flag": True}},
    {"batch_size": 2, "sequence_length": 9, "eval_windows": 3, "checkpoint_every": 2},
]


@pytest.mark.parametrize("fields", POINTS)
def test_command_has_the_configuration_of_its_point(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_for_points.py").write_text("def build(text, number, flag, y=0): ...\n")
    monkeypatch.chdir(tmp_path)
    text = text_corpus(tmp_path).train.pieces[0].path
    own = point(**fields)
    command = own.command(tmp_path / "a folder", data=text, threads=1)
    config, folder, resume = claimed_by(command, monkeypatch)
    assert config == own.config
    assert folder == own.folder(tmp_path / "a folder")
    assert resume


def claimed_by(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainConfig, Path, bool]:
    """The configuration and the folder with which a command would train."""
    found = []

    def claimed(folder: Path, config: TrainConfig, corpus: Any, *, resume: bool) -> None:
        found.append((config, folder, resume))
        raise ValueError("far enough")

    monkeypatch.setattr("unitscale.train.run_folder.claimed", claimed)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit):
        main()
    assert found, "the command was refused"
    return found[0]


def test_a_command_of_another_point_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = point(recipe="fp8", lr=0.5)
    other = Point.of(replace(own.config, lr=0.25))
    text = text_corpus(tmp_path).train.pieces[0].path
    config, _, _ = claimed_by(other.command(tmp_path, data=text, threads=1), monkeypatch)
    assert config != own.config
