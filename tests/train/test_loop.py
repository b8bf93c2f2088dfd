"""The loop: learns, stops and goes on without a trace, and calls a failure a failure."""

import json
import math
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from marks import slow
from train.tiny import MODEL, text_corpus, tiny_config
from unitscale.data import Corpus
from unitscale.models import CharLM
from unitscale.train import CheckpointError, TrainConfig, initial, loop, train
from unitscale.train.initial import ModelError
from unitscale.train.run_log import read_log


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return text_corpus(tmp_path)


def stop_after(step: int) -> Callable[[dict[str, Any]], None]:
    """A callback that presses Ctrl-C during this step."""

    def on_record(record: dict[str, Any]) -> None:
        if record["step"] == step and "loss" in record:
            signal.raise_signal(signal.SIGINT)

    return on_record


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def assert_bit_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def test_assert_bit_equal_sees_one_bit() -> None:
    x = torch.ones(3)
    y = x.clone()
    y[1] = torch.nextafter(y[1], torch.tensor(2.0))
    with pytest.raises(AssertionError):
        assert_bit_equal({"x": x}, {"x": y})


@pytest.mark.parametrize("recipe", ["fp32", "fp32-units"])
def test_training_lowers_the_loss(recipe: str, corpus: Corpus, tmp_path: Path) -> None:
    config = tiny_config(recipe=recipe, steps=40, batch_size=8, sequence_length=32)
    result = train(config, corpus, tmp_path / "run")
    losses = [r["loss"] for r in read_log(tmp_path / "run" / "log.jsonl") if "loss" in r]
    assert abs(losses[0] - math.log(256)) < 0.7
    # Bytes of six words, drawn as they come, carry at most log(7) nats each: half way is learning.
    assert losses[-1] < 3.5
    assert result.valid_loss < 3.5
    assert result.final_train_loss == sum(losses[-2:]) / 2
    assert not result.diverged


def test_run_folder_holds_the_whole_run(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = train(tiny_config(eval_every=3), corpus, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "log.jsonl",
        "result.json",
    ]
    records = read_log(folder / "log.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    assert [r["step"] for r in records if "valid_loss" in r] == [3, 6, 8]
    stored = json.loads((folder / "config.json").read_text())["config"]
    assert TrainConfig.from_json(stored) == tiny_config(eval_every=3)
    assert json.loads((folder / "result.json").read_text())["valid_loss"] == result.valid_loss
    assert result.peak_bytes_saved_for_backward > 0
    assert result.tokens_per_s > 0
    shares = result.share_in_range
    assert shares.keys() == {"activations", "gradients", "weights"}
    assert all(0 <= share <= 1 for share in shares.values())


def test_every_run_of_a_process_has_its_recipe(corpus: Corpus, tmp_path: Path) -> None:
    # Each compiles the same function three times (to measure, train and validate), and Dynamo's
    # limit is eight in all: a rounding that was left out would repeat the loss of fp32-units.
    results = [
        train(tiny_config(recipe=recipe), corpus, tmp_path / recipe)
        for recipe in ("fp32-units", "fp16", "fp8", "fp8-e4m3")
    ]
    assert len({result.final_train_loss for result in results}) == len(results)
    assert all(result.share_in_range["gradients"] is not None for result in results)


def test_same_configuration_gives_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    for name in "ab":
        train(tiny_config(), corpus, tmp_path / name)
    train(tiny_config(seed=1), corpus, tmp_path / "c")
    assert_bit_equal(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))
    with pytest.raises(AssertionError):
        assert_bit_equal(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "c"))


@pytest.mark.parametrize("recipe", ["fp32", slow("fp32-units"), "fp8", "fp16-loss-dynamic"])
def test_interrupted_run_ends_with_the_same_bits(
    recipe: str, corpus: Corpus, tmp_path: Path
) -> None:
    config = tiny_config(recipe=recipe, steps=12, eval_every=4, model={**MODEL, "dropout": 0.1})
    whole = train(config, corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="stopped after step 6 of 12"):
        train(config, corpus, tmp_path / "parts", on_record=stop_after(6))
    assert not (tmp_path / "parts" / "result.json").exists()
    parts = train(config, corpus, tmp_path / "parts", resume=True)
    assert_bit_equal(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    for name in ("final_train_loss", "valid_loss", "share_in_range", "steps_done"):
        assert getattr(whole, name) == getattr(parts, name), name


class Killed(BaseException):
    """What a process that is killed has no chance to handle."""


def test_killed_run_goes_on_from_its_last_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    config = tiny_config(checkpoint_every=3)
    train(config, corpus, tmp_path / "whole")

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        train(config, corpus, tmp_path / "parts", on_record=kill)
    seen: list[int] = []
    train(
        config,
        corpus,
        tmp_path / "parts",
        resume=True,
        on_record=lambda record: seen.append(record["step"]),
    )
    assert seen[0] == 4
    assert_bit_equal(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    losses = [
        [r["loss"] for r in read_log(tmp_path / name / "log.jsonl") if "loss" in r]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("step", [0, slow(1), 2])
def test_run_killed_before_its_first_checkpoint_starts_again(
    step: int, corpus: Corpus, tmp_path: Path
) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_config(), corpus, tmp_path / "run", on_record=kill)
    train(tiny_config(), corpus, tmp_path / "run", resume=True)
    steps = [record["step"] for record in read_log(tmp_path / "run" / "log.jsonl")]
    assert steps == [*range(9), 8]  # the last is the validation


@pytest.mark.parametrize("name", ["log.jsonl", "result.json"])
def test_finished_run_whose_files_disagree_is_refused(
    name: str, corpus: Corpus, tmp_path: Path
) -> None:
    train(tiny_config(), corpus, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(re.sub(r'("(?:final_train_)?loss": \d\.\d)\d', r"\g<1>0", path.read_text()))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        train(tiny_config(), corpus, tmp_path / "run", resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_deleted_result_is_written_again(corpus: Corpus, tmp_path: Path) -> None:
    first = train(tiny_config(), corpus, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert train(tiny_config(), corpus, tmp_path / "run", resume=True) == replace(
        first, tokens_per_s=first.tokens_per_s
    )


def test_checkpoint_of_another_recipe_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    for recipe in ("fp8-none", "fp32"):
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(recipe=recipe), corpus, tmp_path / recipe, on_record=stop_after(2))
    for name in ("checkpoint.safetensors", "log.jsonl"):
        content = (tmp_path / "fp8-none" / name).read_bytes()
        (tmp_path / "fp32" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="another configuration or another text"):
        train(tiny_config(), corpus, tmp_path / "fp32", resume=True)


def test_factory_that_fails_is_named(corpus: Corpus, tmp_path: Path) -> None:
    config = tiny_config(existing="train.test_loop:no_model", model={})
    with pytest.raises(ModelError, match=r"no_model failed with .*RuntimeError: not today"):
        train(config, corpus, tmp_path / "run")


def no_model() -> None:
    raise RuntimeError("not today")


def test_finished_run_is_read_and_not_repeated(corpus: Corpus, tmp_path: Path) -> None:
    first = train(tiny_config(), corpus, tmp_path / "run")

    def refuse(record: dict[str, Any]) -> None:
        pytest.fail("a finished run made a step")

    assert train(tiny_config(), corpus, tmp_path / "run", resume=True, on_record=refuse) == first


def test_damaged_checkpoint_leaves_the_folder_as_it_is(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), corpus, folder, on_record=stop_after(2))
    (folder / "checkpoint.safetensors").write_bytes(b"garbage")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="is not a checkpoint of this run"):
        train(tiny_config(), corpus, folder, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_checkpoint_without_its_log_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), corpus, folder, on_record=stop_after(2))
    (folder / "log.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"log\.jsonl has 0 of the 3 lines"):
        train(tiny_config(), corpus, folder, resume=True)


def poison(monkeypatch: pytest.MonkeyPatch, factor_at: Callable[[int], float]) -> None:
    """Multiply the loss of every training step by a factor that depends on its number, from 0."""
    forward, step = CharLM.forward, loop.Run.step
    factor = 1.0

    def poisoned_forward(self: Any, ids: Any, targets: Any = None) -> Any:
        return forward(self, ids, targets) * factor

    def poisoned_step(self: Any) -> None:
        nonlocal factor
        factor = factor_at(self.state.step)
        step(self)
        factor = 1.0

    monkeypatch.setattr(CharLM, "forward", poisoned_forward)
    monkeypatch.setattr(loop.Run, "step", poisoned_step)


def test_loss_that_is_no_number_ends_the_run_as_diverged(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: math.nan if step == 3 else 1.0)
    result = train(tiny_config(), corpus, tmp_path / "run")
    assert result.diverged
    assert result.steps_done == 4
    assert result.final_train_loss is None
    assert result.valid_loss is None
    losses = [r["loss"] for r in read_log(tmp_path / "run" / "log.jsonl") if "loss" in r]
    assert losses[3:] == [None]
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["diverged"] is True
    assert train(tiny_config(), corpus, tmp_path / "run", resume=True) == result


def test_exploding_loss_ends_the_run_as_diverged(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: 1.0 if step == 0 else 3.0)
    result = train(tiny_config(steps=60, lr=1e-9), corpus, tmp_path / "run")
    assert result.diverged
    assert result.steps_done == 21
    assert result.final_train_loss > 10
    assert result.valid_loss is None


def test_gradients_are_clipped_to_the_norm(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    original = torch.optim.AdamW.step

    def step(self: Any, *args: Any) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        original(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(tiny_config(steps=2, clip_norm=1e-3), corpus, tmp_path / "run")
    assert norms == pytest.approx([1e-3] * 2, rel=1e-3)


def test_overflowing_step_is_skipped_under_a_dynamic_loss_scale(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unitscale.train.loss_scale.INITIAL_SCALE", 2.0**140)
    config = tiny_config(recipe="fp16-loss-dynamic", steps=3)
    result = train(config, corpus, tmp_path / "run")
    records = [r for r in read_log(tmp_path / "run" / "log.jsonl") if "loss" in r]
    assert [r["loss_scale"] for r in records] == [2.0**139, 2.0**138, 2.0**137]
    assert not result.diverged
    after = checkpoint(tmp_path / "run")
    for name, value in initial.initial_state(config).model.state_dict().items():
        assert torch.equal(after[f"model.{name}"], value)


@pytest.mark.parametrize("recipe", ["fp32", "fp32-units"])
def test_only_the_unit_scaled_model_has_rates_by_kind(recipe):
    config = TrainConfig(recipe=recipe, model={"width": 16, "depth": 1})
    model = CharLM(config.model_config)
    groups = initial.build_optimizer(config, model).param_groups
    found = {group.get("kind"): group["lr"] for group in groups}
    if recipe == "fp32":
        assert found == {None: config.peak_lr}
    else:
        assert found["input"] == pytest.approx(0.1 * 16**-0.5)
        assert found["output"] == pytest.approx(2.0)
