"""The precision plugin of Lightning: in force, kept in checkpoints, refused elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unitscale as us

lightning = pytest.importorskip("lightning")

from integrations.tiny_lightning import Net, Regression, batches, trainer  # noqa: E402
from unitscale.integrations import LightningPrecision  # noqa: E402
from unitscale.integrations.kept import keep  # noqa: E402

# 2026-11-29: Lightning 2.6 asks for more workers of its loaders, and for a validation loop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*but have no `val_dataloader`:UserWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*isinstance.treespec, LeafSpec.:FutureWarning",
)


def eager(recipe: str = "fp8", **options) -> LightningPrecision:
    return LightningPrecision(recipe, inner="eager", **options)


def fit(folder: Path, module: Regression, steps: int, **options) -> list[float]:
    ckpt_path = options.pop("ckpt_path", None)
    trainer(folder, steps, **options).fit(module, batches(6), ckpt_path=ckpt_path)
    return module.losses


def test_the_recipe_is_that_of_unit_scale(tmp_path) -> None:
    by_hand = Regression()
    us.unit_scale(by_hand.net, "fp8", inner="eager")
    plugged = Regression()
    losses = fit(tmp_path, plugged, 6, plugins=eager())
    assert losses == fit(tmp_path, by_hand, 6)
    assert losses != fit(tmp_path, Regression(), 6)
    assert us.coverage(plugged.net) == 1.0


def test_fp32_units_is_plain_lightning_to_the_bit(tmp_path) -> None:
    assert fit(tmp_path, Regression(), 6, plugins=eager("fp32-units")) == fit(
        tmp_path, Regression(), 6
    )


def saved(path: Path, **options) -> Regression:
    """A module after one epoch of six steps, with its checkpoint."""
    module = Regression()
    run = trainer(path.parent, -1, max_epochs=1, plugins=eager(), **options)
    run.fit(module, batches(6))
    run.save_checkpoint(path)
    return module


def test_a_resumed_run_has_the_units_of_its_checkpoint(tmp_path) -> None:
    whole = Regression()
    losses = fit(tmp_path, whole, -1, max_epochs=2, plugins=eager())
    first, resumed = saved(tmp_path / "half.ckpt"), Regression()
    rest = fit(
        tmp_path, resumed, -1, max_epochs=2, plugins=eager(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert len(losses) == 12
    assert first.losses + rest == losses
    assert us.unit_rows(resumed.net) == us.unit_rows(whole.net)


def test_without_its_units_a_resumed_run_measures_anew(tmp_path) -> None:
    """The negative of the test before: the schedule goes on by what the checkpoint has."""
    saved(tmp_path / "half.ckpt")
    content = torch.load(tmp_path / "half.ckpt", weights_only=False)
    state = content.pop("LightningPrecision")["net"]["state"]
    assert state["step"] == 6
    assert state["units"]
    torch.save(content, tmp_path / "plain.ckpt")
    resumed = Regression()
    fit(tmp_path, resumed, -1, max_epochs=2, plugins=eager(), ckpt_path=tmp_path / "plain.ckpt")
    assert keep(resumed)["net"]["state"]["step"] == 6


def test_the_checkpoint_is_an_ordinary_one(tmp_path) -> None:
    saved(tmp_path / "half.ckpt")
    plain = Regression()
    fit(tmp_path, plain, -1, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert len(plain.losses) == 6
    loaded = Regression.load_from_checkpoint(tmp_path / "half.ckpt", map_location="cpu")
    with pytest.raises(ValueError, match="no units"):
        us.coverage(loaded.net)


class Late(Regression):
    """A net that is made when the run starts, as large models are."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            torch.manual_seed(0)
            self.net = Net()


def test_a_model_made_in_configure_model_is_scaled(tmp_path) -> None:
    late, early = Late(), Regression()
    torch.manual_seed(0)
    early.net = Net()
    assert fit(tmp_path, late, 3, plugins=eager()) == fit(tmp_path, early, 3, plugins=eager())
    assert us.coverage(late.net) == 1.0


def test_validate_restores_units(tmp_path) -> None:
    module = saved(tmp_path / "end.ckpt")
    trainer(tmp_path, 6, plugins=eager()).validate(module, batches(2), verbose=False)
    again = Regression()
    trainer(tmp_path, 6, plugins=eager()).validate(
        again, batches(2), ckpt_path=tmp_path / "end.ckpt", verbose=False
    )
    assert again.valid == module.valid
    assert us.coverage(again.net) == 1.0


def test_validation_between_steps_changes_no_step(tmp_path) -> None:
    plain = fit(tmp_path, Regression(), 6, plugins=eager())
    module = Regression()
    run = trainer(tmp_path, 6, plugins=eager(), val_check_interval=2)
    run.fit(module, batches(6), batches(1))
    assert module.losses == plain
    assert len(module.valid) == 3


def test_accumulation_is_that_of_unit_scale(tmp_path) -> None:
    by_hand = Regression()
    us.unit_scale(by_hand.net, "fp8", inner="eager")
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    losses = fit(tmp_path, Regression(), 3, plugins=eager(), **options)
    assert losses == fit(tmp_path, by_hand, 3, **options)
    assert len(losses) == 6


class Whole(Regression):
    """Layers of the LightningModule itself, called by its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)


class Scattered(Whole):
    """Layers that the step calls, without any forward."""

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.out(self.net(x)), y)


@pytest.mark.parametrize("kind", [Whole, Scattered])
def test_a_lightning_module_with_layers_of_its_own_is_scaled_itself(tmp_path, kind) -> None:
    module = kind()
    losses = fit(tmp_path, module, 3, plugins=eager())
    assert us.coverage(module) == 1.0
    assert losses != fit(tmp_path, kind(), 3)


def test_one_module_of_several_may_be_chosen(tmp_path) -> None:
    module = Whole()
    fit(tmp_path, module, 3, plugins=eager(module="net"))
    assert us.coverage(module.net) == 1.0
    with pytest.raises(ValueError, match="no units"):
        us.coverage(module)


def test_a_path_of_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"module='model' is no module .* one of \['net'\]"):
        fit(tmp_path, Regression(), 1, plugins=eager(module="model"))


def test_a_module_that_no_step_calls_is_warned_of(tmp_path) -> None:
    class Unused(Whole):
        def loss(self, batch: list[Tensor]) -> Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    with pytest.warns(UserWarning, match=r"nothing of 'out' \(Linear\) has run"):
        fit(tmp_path, Unused(), 1, plugins=eager(module="out"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true", "16-true"])
def test_a_second_precision_is_refused(tmp_path, precision) -> None:
    with pytest.raises(ValueError, match=r"Received both `precision=.*LightningPrecision\('fp8'\)"):
        trainer(tmp_path, 1, plugins=eager(), precision=precision)


def test_two_plugins_of_precision_are_refused(tmp_path) -> None:
    with pytest.raises(Exception, match="multiple values for Precision"):
        trainer(tmp_path, 1, plugins=[eager(), eager()])


def test_a_strategy_with_a_precision_of_its_own_is_refused(tmp_path) -> None:
    strategy = lightning.pytorch.strategies.FSDPStrategy()
    with pytest.raises(TypeError, match="only work with the `FSDPPrecision` plugin"):
        strategy.precision_plugin = eager()


def test_a_compiled_lightning_module_is_refused(tmp_path) -> None:
    compiled = torch.compile(Regression(), backend="eager")
    with pytest.raises(ValueError, match="this Regression is compiled"):
        trainer(tmp_path, 1, plugins=eager()).fit(compiled, batches(1))


def test_a_compiled_net_is_refused(tmp_path) -> None:
    module = Regression()
    module.net = torch.compile(module.net, backend="eager")
    with pytest.raises(ValueError, match="already compiled"):
        fit(tmp_path, module, 1, plugins=eager())


def test_an_unknown_recipe_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'fp9'"):
        LightningPrecision("fp9")


def test_another_recipe_for_a_scaled_module_is_refused(tmp_path) -> None:
    module = Regression()
    fit(tmp_path, module, 1, plugins=eager())
    with pytest.raises(ValueError, match="under recipe 'fp8' and not 'fp8-e4m3'"):
        fit(tmp_path, module, 1, plugins=eager("fp8-e4m3"))


def test_a_recipe_without_units_is_applied(tmp_path) -> None:
    by_hand = Regression()
    us.apply_recipe(by_hand.net, "mxfp8", inner="eager")
    module = Regression()
    losses = fit(tmp_path, module, 3, plugins=eager("mxfp8"))
    assert losses == fit(tmp_path, by_hand, 3)


def test_units_of_another_model_are_refused(tmp_path) -> None:
    module = Regression()
    run = trainer(tmp_path, 2, plugins=eager())
    run.fit(module, batches(6))
    state = run.precision_plugin.state_dict()
    plugin = eager()
    other = Whole()
    plugin.convert_module(other)
    with pytest.raises(ValueError, match=r"missing \['net.*extra \['down"):
        plugin.load_state_dict(state)
    with pytest.raises(ValueError, match="no model yet"):
        eager().load_state_dict(state)


def test_fabric_is_told_what_to_do() -> None:
    fabric = lightning.Fabric(accelerator="cpu", plugins=eager())
    with pytest.raises(ValueError, match="got a Linear, which is no LightningModule; with Fabric"):
        fabric.setup(nn.Linear(2, 2))


@pytest.mark.slow
def test_two_processes_have_the_units_of_one_run(tmp_path) -> None:
    """DDP over gloo; both have the same units, and a checkpoint goes on as the run did."""
    script = Path(__file__).with_name("two_lightning.py")
    line = [sys.executable, str(script), str(tmp_path)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    whole, half, resumed = (
        [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        for name in ("whole", "half", "resumed")
    )
    assert whole[0]["units"] == whole[1]["units"]
    assert whole[0]["losses"] != whole[1]["losses"]  # each has its share of the batch
    for a, c, b in zip(whole, half, resumed, strict=True):
        assert b["losses"] == a["losses"][5:]
        assert c["unshared"] == {}  # the last step before it measured, in each its own share
        assert b["units"] == a["units"]


class Summaries(lightning.Callback):
    """What `us.summary` says while a module is trained."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_train_batch_end(self, trainer, module, *args) -> None:
        self.said.append(str(us.summary(module.net)))


def test_summary_and_report_of_a_module_in_training(tmp_path) -> None:
    """As docs/existing_models.md says: of the child that is scaled, which an error names."""
    module, summaries = Regression(), Summaries()
    us.unit_scale(module.net, "fp8", inner="eager")
    path = tmp_path / "numerics.jsonl"
    with us.record.record(module.net, every=2, path=path):
        fit(tmp_path, module, 4, plugins=eager(), callbacks=[summaries])
    assert len(summaries.said) == 4
    assert all("fp8" in said for said in summaries.said)
    with pytest.raises(ValueError, match="no units of its own, but its 'net' has"):
        us.summary(module)
    page = us.report.write_report(path)
    assert page == tmp_path / "report.html"
    recording = us.report.read_recording(path)
    assert list(recording.steps) == [0, 2]
    assert any(series.name == "up.linear" for series in recording.series)
