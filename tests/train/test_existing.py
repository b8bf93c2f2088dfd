"""The main job on models that are left as they are: units instead of a parametrization."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.tiny import text_corpus, tiny_config
from unitscale.data import Corpus
from unitscale.models.next_byte import NextByte
from unitscale.train import TrainConfig, loop, train
from unitscale.train.config import STANDARD_LR
from unitscale.train.initial import check_output
from unitscale.train.planned import plan_runs
from unitscale.train.run_log import read_log

pytest.importorskip("transformers")

LLAMA: dict[str, Any] = {"existing": "llama", "model": {"width": 32, "depth": 1}}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return text_corpus(tmp_path)


def parameters(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "checkpoint.safetensors")


def test_units_alone_change_no_bit_of_a_run(corpus: Corpus, tmp_path: Path) -> None:
    plain = train(tiny_config(**LLAMA, recipe="fp32"), corpus, tmp_path / "plain")
    units = train(tiny_config(**LLAMA, recipe="fp32-units"), corpus, tmp_path / "units")
    assert units.valid_loss == plain.valid_loss
    assert units.final_train_loss == plain.final_train_loss
    assert units.share_in_range == {"activations": 1.0, "gradients": 1.0, "weights": 1.0}
    assert plain.share_in_range["activations"] < 0.5


def test_log_says_which_steps_measured(corpus: Corpus, tmp_path: Path) -> None:
    result = train(tiny_config(**LLAMA, recipe="fp8", steps=10), corpus, tmp_path / "run")
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] - 1 for r in records if r.get("measured")] == [0, 1, 2, 4, 8]
    assert result.peak_bytes_saved_for_backward > 0


def test_log_says_what_a_run_loses(corpus: Corpus, tmp_path: Path) -> None:
    """A rate so high that what was measured at the first step fits no longer at step 8."""
    config = tiny_config(**LLAMA, recipe="fp8-e4m3", steps=10, lr=3.0, warmup_fraction=0.0)
    train(config, corpus, tmp_path / "run")
    lost = [r["lost"] for r in read_log(tmp_path / "run" / "log.jsonl") if "lost" in r]
    assert lost
    assert all(line.startswith("fp8-e4m3: of ") for lines in lost for line in lines)


def test_resumed_run_with_units_ends_in_the_same_bits(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**LLAMA, recipe="fp8", steps=10, checkpoint_every=1, eval_every=2)
    whole = train(config, corpus, tmp_path / "whole")
    step = loop.Run.step

    def stopping(self: loop.Run) -> None:
        if self.state.step == 3:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, corpus, tmp_path / "parts")
    parts = train(config, corpus, tmp_path / "parts", resume=True)
    assert parts.valid_loss == whole.valid_loss
    one, two = parameters(tmp_path / "whole"), parameters(tmp_path / "parts")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    measured = [r["step"] for r in read_log(tmp_path / "parts" / "log.jsonl") if r.get("measured")]
    assert measured == [1, 2, 3, 5, 9]


class Bigram(nn.Module):
    """A user's own model, for `train.test_existing:Bigram`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(256, width), nn.Linear(width, 256))

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(ids)


def test_own_model_by_module_and_factory(corpus: Corpus, tmp_path: Path) -> None:
    own = {"existing": "train.test_existing:Bigram", "model": {"width": 8}}
    result = train(tiny_config(**own, recipe="fp8", lr=0.1), corpus, tmp_path / "run")
    assert not result.diverged
    assert result.final_train_loss < 5.5
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"]["existing"] == "train.test_existing:Bigram"


def test_every_recipe_has_the_same_learning_rate() -> None:
    configs = plan_runs(tiny_config(**LLAMA), ["fp32", "fp8"], [0])
    assert {config.peak_lr for config in configs} == {STANDARD_LR}
    with pytest.raises(ValueError, match=r"--unit-lr has no meaning for llama"):
        plan_runs(tiny_config(**LLAMA), ["fp8"], [0], unit_lr=1.0)


def test_name_that_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="existing is 'lama'; expected gpt2, llama or MODULE"):
        TrainConfig(existing="lama")


class Counts(nn.Module):
    """Draws random numbers, and keeps a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(256, 8), nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 256)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(torch.dropout(self.table(ids), 0.5, True).flatten(0, 1))
        return self.out(hidden).view(*ids.shape, 256)


def test_look_at_what_a_model_returns_leaves_it_and_the_random_state_alone() -> None:
    model = NextByte(Counts())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = torch.get_rng_state()
    check_output(tiny_config(existing="any:thing"), model)
    assert torch.equal(torch.get_rng_state(), state)
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])
    assert all(p.grad is None for p in model.parameters())
