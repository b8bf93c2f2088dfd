"""Which runs a comparison has, and which folders take them."""

from pathlib import Path

import pytest

from train.tiny import text_corpus, tiny_config
from unitscale.data import Corpus
from unitscale.train import TrainConfig
from unitscale.train.lock import InUseError
from unitscale.train.planned import claimed_comparison, plan_runs, run_folder
from unitscale.train.run_folder import claimed


def test_runs_differ_in_recipe_seed_and_rate_only() -> None:
    base = tiny_config()
    runs = plan_runs(base, ["fp32", "fp8"], range(2), standard_lr=0.5, unit_lr=2.0)
    assert [(run.recipe, run.seed, run.lr) for run in runs] == [
        ("fp32", 0, 0.5),
        ("fp8", 0, 2.0),
        ("fp32", 1, 0.5),
        ("fp8", 1, 2.0),
    ]
    own = {"recipe", "seed", "lr"}
    for run in runs:
        differing = {k for k, v in run.to_json().items() if v != base.to_json()[k]}
        assert differing <= own


def claim_comparison(
    folder: Path, configs: list[TrainConfig], corpus: Corpus, *, resume: bool
) -> None:
    """Claim a folder, and let it go."""
    with claimed_comparison(folder, configs, corpus, resume=resume):
        pass


def test_comparison_takes_back_its_own_runs_and_no_others(tmp_path: Path) -> None:
    corpus, out = text_corpus(tmp_path), tmp_path / "out"
    configs = plan_runs(tiny_config(), ["fp32", "fp8"], [0])
    with (
        claimed_comparison(out, configs, corpus, resume=False),
        claimed(run_folder(out, configs[0]), configs[0], corpus, resume=False),
    ):
        pass
    claim_comparison(out, configs, corpus, resume=True)
    with pytest.raises(FileExistsError, match=r"\(runs exists\); add --resume"):
        claim_comparison(out, configs, corpus, resume=False)
    with pytest.raises(ValueError, match="also holds the run fp32-seed0"):
        claim_comparison(out, configs[1:], corpus, resume=True)
    with pytest.raises(ValueError, match="its steps is 8 and not 9"):
        claim_comparison(out, plan_runs(tiny_config(steps=9), ["fp32"], [0]), corpus, resume=True)


def test_folder_of_a_run_is_no_place_for_a_comparison(tmp_path: Path) -> None:
    corpus, config = text_corpus(tmp_path), tiny_config()
    with claimed(tmp_path / "run", config, corpus, resume=False):
        pass
    with pytest.raises(ValueError, match=r"holds a run of `train` \(config\.json exists\)"):
        claim_comparison(tmp_path / "run", [config], corpus, resume=True)


def test_claimed_comparison_is_in_use(tmp_path: Path) -> None:
    corpus, configs = text_corpus(tmp_path), [tiny_config()]
    with (
        claimed_comparison(tmp_path / "out", configs, corpus, resume=False),
        pytest.raises(InUseError, match="out is in use by another process"),
    ):
        claim_comparison(tmp_path / "out", configs, corpus, resume=True)
