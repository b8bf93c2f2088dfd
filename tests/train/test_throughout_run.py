"""Every tensor of a run in one format: that it is in force, everywhere and at every step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import unitscale as us
from train.held_values import assert_held, is_held
from train.tiny import MODEL, text_corpus, tiny_config
from unitscale.data import Corpus
from unitscale.models import CharLM, CharLMConfig
from unitscale.recipes import TRUE_FP16, Throughout
from unitscale.train import run as run_file
from unitscale.train import throughout as throughout_file
from unitscale.train import train
from unitscale.train.planned import with_control
from unitscale.train.spread import Spread
from unitscale.train.throughout import EveryResult, rounding

FORMS = ("fp16-true", "fp16-true-stochastic", "fp16-true-ftz")
NEAREST, STOCHASTIC, FLUSHED = (TRUE_FP16[name].throughout for name in FORMS)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return text_corpus(tmp_path)


@pytest.fixture(autouse=True)
def _no_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a run before its first step takes longer than the run."""
    monkeypatch.setattr(run_file, "first_look", lambda *_: {"share_in_range": {}})


def watched(model: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every module's output and its gradient, as the next pass leaves them."""
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, inputs: Any, output: Tensor) -> None:
            if output.dim():
                outputs[name] = output.detach().clone()
                if output.requires_grad:
                    output.register_hook(lambda g: gradients.__setitem__(name, g.detach().clone()))

        return keep

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    return outputs, gradients


class Looking(run_file.Run):
    """A run that keeps what its modules gave at the steps asked for."""

    def forward_and_backward(self, *args: Any) -> Any:
        if not hasattr(self, "found"):
            self.found = watched(self.state.model)
        value = super().forward_and_backward(*args)
        step = self.state.step
        parameters = {n: p.grad.clone() for n, p in self.state.model.named_parameters()}
        outputs, gradients = (dict(found) for found in self.found)
        LOOKED[step] = {"forward": outputs, "backward": gradients, "grad": parameters}
        return value

    def update(self, lr: float) -> None:
        super().update(lr)
        optimizer, step = self.state.optimizer, self.state.step
        LOOKED[step]["weight"] = {
            n: p.detach().clone() for n, p in self.state.model.named_parameters()
        }
        states = list(optimizer.state.values())
        first = "exp_avg" if "exp_avg" in states[0] else "momentum_buffer"
        LOOKED[step]["m"] = {str(i): s[first].clone() for i, s in enumerate(states)}
        LOOKED[step]["v"] = {
            str(i): s["exp_avg_sq"].clone() for i, s in enumerate(states) if "exp_avg_sq" in s
        }
        assert len(states) == len(LOOKED[step]["weight"])


LOOKED: dict[int, dict[str, dict[str, Tensor]]] = {}
PLACES = ("forward", "backward", "grad", "weight", "m")


@contextmanager
def looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, dict[str, dict[str, Tensor]]]]:
    """Runs inside are looked at."""
    LOOKED.clear()
    monkeypatch.setattr("unitscale.train.loop.Run", Looking)
    yield LOOKED


@pytest.mark.parametrize(
    ("form", "units", "layer"),
    [
        ("fp16-true", "", "attention"),
        ("fp16-true-ftz", "", "conv"),
        ("fp16-true-stochastic", "", "attention"),
        ("fp16-true", "-units", "conv"),
        ("fp16-true-ftz", "-units", "rnn"),
        ("fp16-true-stochastic", "-units", "attention"),
    ],
)
def test_rounding_is_in_force_everywhere_at_the_first_step_and_at_the_tenth(
    form: str,
    units: str,
    layer: str,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = {"batch_size": 2, "sequence_length": 4} if layer == "rnn" else {}
    config = tiny_config(recipe=form + units, steps=10, model=MODEL | {"layer": layer}, **size)
    with looking(monkeypatch) as seen:
        result = train(config, corpus, tmp_path / "run")
    how = TRUE_FP16[form].throughout
    for step in (0, 9):
        for place in PLACES:
            assert_held(seen[step][place], how)
        # What is to stay in FP32 does.
        assert not all(is_held(x, NEAREST) for x in seen[step]["v"].values())
    assert result.coverage == 1.0


@pytest.mark.parametrize("recipe", ["fp32", "fp32-units"])
def test_other_recipes_leave_these_places_in_fp32(
    recipe: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(recipe=recipe, steps=10)
    with looking(monkeypatch) as seen:
        train(config, corpus, tmp_path / "run")
    for place in PLACES:
        with pytest.raises(AssertionError):
            assert_held(seen[9][place], NEAREST)


def test_momentum_of_sgd_is_held_too(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(recipe="fp16-true-units", optimizer="sgd", lr=0.1, steps=3)
    with looking(monkeypatch) as seen:
        train(config, corpus, tmp_path / "run")
    for place in PLACES:
        assert_held(seen[2][place], NEAREST)
    assert not seen[2]["v"]


def test_validation_is_rounded(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run with the same weights and no rounding in its validation has another loss."""
    found = train(tiny_config(recipe="fp16-true", steps=2), corpus, tmp_path / "a").valid_loss
    plain = run_file.Run.validate

    def unrounded(self: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(run_file, "rounding", lambda *_: rounding(None))
            plain(self)

    monkeypatch.setattr(run_file.Run, "validate", unrounded)
    other = train(tiny_config(recipe="fp16-true", steps=2), corpus, tmp_path / "b").valid_loss
    assert found != other
    assert found == pytest.approx(other, rel=2.0**-8)


@pytest.mark.parametrize("recipe", ["fp16-true-stochastic", "fp16-true-units"])
def test_a_stopped_run_goes_on_bit_equal(recipe: str, corpus: Corpus, tmp_path: Path) -> None:
    config = tiny_config(recipe=recipe, steps=4, checkpoint_every=2, eval_windows=4)

    def stop(record: dict[str, Any]) -> None:
        if record.get("step") == 2 and "loss" in record:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, corpus, tmp_path / "b", on_record=stop)
    train(config, corpus, tmp_path / "b", resume=True)
    train(config, corpus, tmp_path / "a")
    one, other = (load_file(tmp_path / n / "checkpoint.safetensors") for n in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("log2", [-4, 0, 11])
def test_the_loss_scale_cancels_where_nothing_leaves_the_range(
    log2: int, corpus: Corpus, tmp_path: Path
) -> None:
    """A power of two moves no value on the grid: the losses are close, whatever the scale."""
    losses = {}
    for recipe in ("fp16-true(6)", f"fp16-true({log2})"):
        folder = tmp_path / recipe
        losses[recipe] = train(tiny_config(recipe=recipe), corpus, folder).valid_loss
    one, other = losses.values()
    # Subnormals, the only difference, are below 2^-14 of the largest gradients here.
    assert one == pytest.approx(other, abs=2.0**-6)


def test_sums_over_micro_batches_are_rounded(corpus: Corpus, tmp_path: Path) -> None:
    """Sixteen gradients of FP16 have sums that are none, until they are rounded."""
    how = NEAREST
    model = CharLM(CharLMConfig(**MODEL, context=16))
    ids = torch.arange(64).view(4, 16)
    for is_rounded in (True, False):
        model.zero_grad()
        for row in ids.split(1):
            with (
                EveryResult(how) if is_rounded else EveryResult(Throughout(format=us.formats.FP32))
            ):
                model(row, row).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        if is_rounded:
            assert_held(gradients, how)
        else:
            with pytest.raises(AssertionError):
                assert_held(gradients, how)
    config = tiny_config(recipe="fp16-true", steps=2)
    assert train(config, corpus, tmp_path / "m", spread=Spread(micro_batches=2)).coverage == 1.0


def test_a_run_whose_mode_does_not_see_its_operations_is_an_error(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughout_file, "is_rounded", lambda x: False)
    with pytest.raises(RuntimeError, match="no tensor was rounded"):
        train(tiny_config(recipe="fp16-true"), corpus, tmp_path / "run")


def test_a_backward_pass_that_goes_past_the_mode_is_an_error(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would in a thread of torch's that does not know the mode."""
    backward = Tensor.backward

    def outside(self: Tensor, *args: Any) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            backward(self, *args)

    monkeypatch.setattr(Tensor, "backward", outside)
    with pytest.raises(RuntimeError, match="no tensor was rounded"):
        train(tiny_config(recipe="fp16-true"), corpus, tmp_path / "run")


@pytest.mark.parametrize("recipe", ["fp16-true-units", "fp16-true-ftz-units"])
def test_a_comparison_has_its_control(recipe: str) -> None:
    assert with_control(tiny_config(), ["fp32", recipe]) == ["fp32", "fp32-units", recipe]
    assert with_control(tiny_config(), ["fp32", "fp16-true"]) == ["fp32", "fp16-true"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inner": "inductor"}, "inner is 'inductor'.*take --inner auto or eager"),
        ({"existing": "llama", "model": {}}, "existing is 'llama'.*take --model attention"),
        ({"dtype": "bf16"}, "dtype is 'bf16'"),
        ({"states": "coat"}, "states is 'coat'"),
        ({"record_every": 5}, "record_every is 5"),
    ],
)
def test_what_it_does_not_go_with_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_config(recipe="fp16-true", **changes)
    tiny_config(recipe="fp32", **changes)


def test_several_ranks_are_refused_and_micro_batches_are_not() -> None:
    config = tiny_config(recipe="fp16-true")
    Spread(micro_batches=2).check(config)
    with pytest.raises(ValueError, match="'fp16-true' is for one process"):
        Spread(ranks=2).check(config)
    Spread(ranks=2).check(replace(config, recipe="fp32"))


def test_sgd_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="lr is None and optimizer is 'sgd'"):
        tiny_config(optimizer="sgd")
    with pytest.raises(ValueError, match="optimizer is 'lion'"):
        tiny_config(optimizer="lion")
    assert "optimizer" not in tiny_config().to_json()
    assert tiny_config(optimizer="sgd", lr=1.0).to_json()["optimizer"] == "sgd"
