"""Every tensor of a run in one format: that it is in force, everywhere and at every step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import unitscale as us
from train.tiny import MODEL, text_corpus, tiny_config
from unitscale.data import Corpus
from unitscale.models import CharLM, CharLMConfig
from unitscale.recipes import TRUE_FP16, Throughout
from unitscale.train import run as run_file
from unitscale.train import throughout as throughout_file
from unitscale.train import train
from unitscale.train.planned import with_control
from unitscale.train.spread import Spread
from unitscale.train.throughout import EveryResult, hold_, rounded, rounding

FORMS = ("fp16-true", "fp16-true-stochastic", "fp16-true-ftz")
NEAREST, STOCHASTIC, FLUSHED = (TRUE_FP16[name].throughout for name in FORMS)
SMALLEST, NORMAL = 2.0**-24, 2.0**-14


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return text_corpus(tmp_path)


@pytest.fixture(autouse=True)
def _no_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a run before its first step takes longer than the run."""
    monkeypatch.setattr(run_file, "first_look", lambda *_: {"share_in_range": {}})


def is_held(x: Tensor, how: Throughout) -> bool:
    """Whether all values are those of the format."""
    fits = torch.equal(x, x.half().float())
    return fits and (how.subnormals == "kept" or not ((x != 0) & (x.abs() < NORMAL)).any())


def assert_held(tensors: dict[str, Tensor], how: Throughout) -> None:
    assert tensors
    assert [name for name, x in tensors.items() if not is_held(x, how)] == []


def test_assert_held_sees_one_value_and_an_empty_list() -> None:
    x = torch.ones(4)
    assert_held({"x": x, "tiny": torch.tensor([SMALLEST])}, NEAREST)
    for wrong in ({"x": x + torch.tensor([0, 0, 2.0**-20, 0])}, {}):
        with pytest.raises(AssertionError):
            assert_held(wrong, NEAREST)
    with pytest.raises(AssertionError):
        assert_held({"x": torch.tensor([SMALLEST])}, FLUSHED)


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


def test_stochastic_runs_of_two_seeds_draw_other_bits() -> None:
    x = torch.rand(1000)
    a, b, c = (rounded(x, STOCHASTIC, seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_flushing_takes_subnormals_alone_and_keeps_signs_and_what_is_not_finite() -> None:
    x = torch.tensor([NORMAL, NORMAL * 0.99, -SMALLEST, NORMAL * (1 - 2.0**-12), 1.0])
    assert rounded(x, FLUSHED, 0).tolist() == [NORMAL, 0.0, 0.0, NORMAL, 1.0]
    assert rounded(x, NEAREST, 0)[2] == -SMALLEST
    odd = rounded(torch.tensor([torch.inf, -torch.inf, torch.nan, 7e4]), FLUSHED, 0)
    assert odd[:2].tolist() == [torch.inf, -torch.inf]
    assert odd[2].isnan()
    assert odd[3] == torch.inf


@pytest.mark.parametrize("how", [NEAREST, FLUSHED])
def test_the_first_moment_is_held_at_the_scale_of_the_loss(how: Throughout) -> None:
    """`2^-20` is lost without a loss scale where subnormals are flushed, and kept at 2^11."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], 1.0, weight_decay=0.0)
    for scale in (2.0**11, 1.0):
        optimizer.state[parameter] = {"exp_avg": torch.full((2,), 2.0**-20)}
        hold_(optimizer, how, loss_scale=scale, seed=0, step=1)
        lost = how is FLUSHED and scale == 1
        assert optimizer.state[parameter]["exp_avg"].tolist() == [0.0 if lost else 2.0**-20] * 2


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


def test_a_loss_scale_beyond_the_range_is_seen() -> None:
    """The scale itself may be larger than FP16's largest value; gradients that are may not."""
    model = CharLM(CharLMConfig(**MODEL, context=16))
    ids = torch.arange(32).view(2, 16)
    for log2, is_finite in ((16, True), (30, False)):
        model.zero_grad()
        with EveryResult(NEAREST):
            loss = model(ids, ids)
            loss.backward(torch.full_like(loss, 2.0**log2))
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters()) == is_finite


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


def test_in_place_results_and_outputs_given_are_rounded_where_they_are() -> None:
    x = torch.full((3,), 1.0)
    out = torch.empty(3)
    with EveryResult(NEAREST) as mode:
        x.add_(2.0**-13)
        torch.mul(x, 1 + 2.0**-12, out=out)
        view = x[:2]
        view.mul_(1 + 2.0**-12)
    assert x.tolist() == out.tolist() == [1.0, 1.0, 1.0]
    assert view.data_ptr() == x.data_ptr()
    assert mode.count == 3


def test_the_loss_the_statistics_and_constants_stay_in_fp32() -> None:
    logits = torch.randn(8, 5, requires_grad=True)
    with EveryResult(NEAREST):
        loss = F.cross_entropy(logits, torch.arange(8) % 5)
        angle = torch.arange(3, dtype=torch.float32) * 0.1
        turned = logits[:3, 0] * angle.cos()
        _, mean, _ = torch.native_layer_norm(logits, [5], None, None, 1e-5)
    assert loss.item() == F.cross_entropy(logits, torch.arange(8) % 5).item()
    assert torch.equal(angle, torch.arange(3, dtype=torch.float32) * 0.1)
    assert torch.equal(mean, torch.native_layer_norm(logits, [5], None, None, 1e-5)[1])
    assert is_held(turned.detach(), NEAREST)


def test_a_pass_that_rounded_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no tensor was rounded to FP16"), rounding(NEAREST, 0):
        torch.arange(3)
    with rounding(None):
        assert (torch.ones(1) + 2.0**-20).item() != 1.0


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


@pytest.mark.parametrize("call", [us.apply_recipe, us.unit_scale])
def test_a_model_that_is_not_in_a_run_cannot_have_it(call: Any) -> None:
    model = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'fp16-true' rounds every tensor of a run"):
        call(model, "fp16-true")
    assert call(model, "mxfp8") is model  # it was left as it was


def test_sgd_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="lr is None and optimizer is 'sgd'"):
        tiny_config(optimizer="sgd")
    with pytest.raises(ValueError, match="optimizer is 'lion'"):
        tiny_config(optimizer="lion")
    assert "optimizer" not in tiny_config().to_json()
    assert tiny_config(optimizer="sgd", lr=1.0).to_json()["optimizer"] == "sgd"


@pytest.mark.parametrize(
    ("unit_scaled", "log2", "low", "high"),
    [
        (False, 0, 0.05, 0.5),
        (False, 11, 0.0, 0.001),
        (False, -8, 0.99, 1.0),
        (True, 0, 0.0, 0.001),
        (True, -8, 0.0, 0.05),
    ],
)
def test_the_claim_of_the_paper_in_one_step(
    unit_scaled: bool, log2: int, low: float, high: float
) -> None:
    """The share of weight gradients that flushing takes: seed 0 gave 0.15, 0.0001, 1, 0.0001, 0.01.

    In between lie octaves of the loss scale, so the bands do not depend on the seed.
    """
    torch.manual_seed(0)
    model = CharLM(CharLMConfig(width=32, depth=1, context=64, unit_scaled=unit_scaled))
    ids = torch.randint(0, 256, (16, 65))
    with EveryResult(FLUSHED):
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward(torch.full_like(loss, 2.0**log2))
    # Of the embedding, bytes that do not occur have no gradient in any case.
    grads = [p.grad for name, p in model.named_parameters() if "embedding" not in name]
    lost = torch.cat([(grad == 0).float().flatten() for grad in grads]).mean().item()
    assert low <= lost <= high
