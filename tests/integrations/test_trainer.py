"""The callback of the Trainer: units in every checkpoint, whatever becomes of the model."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import unitscale as us

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments

from integrations.small import Small, rows
from unitscale.integrations import KeepUnits
from unitscale.integrations.kept import keep, scaled_in


def trainer(
    folder: Path, *, recipe: str | None = "fp8", keeps: bool = True, **options: Any
) -> Trainer:
    """Six steps with a checkpoint after the third."""
    options = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }
    model = Small() if recipe is None else us.unit_scale(Small(), recipe, inner="eager")
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **options),
        train_dataset=rows(24),
        eval_dataset=rows(8),
        callbacks=[KeepUnits()] if keeps else None,
    )


def losses(run: Trainer) -> list[float]:
    return [float(entry["loss"]) for entry in run.state.log_history if "loss" in entry]


def units(run: Trainer) -> dict[str, Any]:
    return keep(run.model)


OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"bf16": True}, id="bf16"),
    pytest.param({"gradient_accumulation_steps": 2}, id="accumulated", marks=pytest.mark.slow),
    pytest.param(
        {"torch_compile": True, "torch_compile_backend": "eager"},
        id="compiled",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"eval_strategy": "steps", "eval_steps": 2}, id="evaluated", marks=pytest.mark.slow
    ),
    pytest.param(
        {"restore_callback_states_from_checkpoint": True},
        id="callbacks restored",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path, options) -> None:
    """From a checkpoint that was moved, too: the units are not looked for in the output folder."""
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    shutil.move(tmp_path / "whole" / "checkpoint-3", tmp_path / "moved")
    resumed = trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "moved"))
    assert losses(resumed) == losses(whole)
    assert units(resumed) == units(whole)
    state = units(whole)[""]["state"]
    assert state["step"] == 6 * options.get("gradient_accumulation_steps", 1)
    ((_, _, session),) = scaled_in(whole.model)
    assert session.covered == {id(p) for p in whole.model.parameters()}  # the recipe is in force


def test_the_recipe_changes_the_run(tmp_path) -> None:
    """The negative: a Trainer that ran around the recipe would have the losses of the plain one."""
    scaled, plain = trainer(tmp_path), trainer(tmp_path, recipe=None, keeps=False)
    scaled.train()
    plain.train()
    assert losses(scaled) != losses(plain)


def test_without_units_a_resumed_run_measures_anew_and_says_so(tmp_path) -> None:
    trainer(tmp_path, keeps=False).train()
    resumed = trainer(tmp_path)
    with pytest.warns(UserWarning, match="KeepUnits: the checkpoint was written without units"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert units(resumed)[""]["state"]["step"] == 3
    saved = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["KeepUnits"]["units"][""]["state"]["step"] == 3


def test_the_best_checkpoint_brings_its_units(tmp_path) -> None:
    run = trainer(
        tmp_path,
        greater_is_better=True,  # so that the first evaluation is the best
        metric_for_best_model="loss",
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
    )
    run.train()
    best = Path(run.state.best_model_checkpoint)
    saved = json.loads((best / "trainer_state.json").read_text())
    kept = saved["stateful_callbacks"]["KeepUnits"]["units"]
    assert best.name != "checkpoint-6"
    assert units(run)[""]["state"] == {**kept[""]["state"], "unshared": {}}


def test_a_checkpoint_loads_without_the_callback(tmp_path) -> None:
    trainer(tmp_path).train()
    plain = trainer(tmp_path / "plain", recipe=None, keeps=False)
    plain.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(losses(plain)) == 6


def test_a_model_that_is_not_scaled_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="KeepUnits: no module of this Small is scaled"):
        trainer(tmp_path, recipe=None).train()


def test_units_of_another_model_are_refused(tmp_path) -> None:
    trainer(tmp_path).train()
    path = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    state["stateful_callbacks"]["KeepUnits"]["units"][""]["parameters"] = ["other"]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"another Small: missing \['down.*extra \['other'\]"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_best_checkpoint_that_is_gone_is_a_warning(tmp_path) -> None:
    callback, model = KeepUnits(), us.unit_scale(Small(), "fp8", inner="eager")
    callback.model = model
    before = keep(model)
    args = SimpleNamespace(load_best_model_at_end=True)
    state = SimpleNamespace(best_model_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.warns(
        UserWarning, match=r"best checkpoint cannot be read \(FileNotFoundError.*stay"
    ):
        callback.on_train_end(args, state, None)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{")
    with pytest.warns(UserWarning, match="cannot be read"):
        callback.on_train_end(args, state, None)
    assert keep(model) == before
