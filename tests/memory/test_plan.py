"""Memory on paper is the memory that runs take: measured on models of real numbers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from marks import slow
from unitscale import units
from unitscale.cli import main
from unitscale.cli.plan_memory import held_in, legend, unit_for
from unitscale.memory import STATES, plan_memory, state_bytes
from unitscale.memory.audit import Kept, kept_by
from unitscale.memory.plan import Sizes, kept_at, sizes_at, sizes_of
from unitscale.memory.source import Source
from unitscale.models.next_byte import as_loss
from unitscale.recipes import parse
from unitscale.train.measure import saved_for_backward

LENGTH = 16
LLAMA = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TEN_MILLION = LLAMA | {"hidden_size": 320, "intermediate_size": 960, "num_hidden_layers": 8}

WITHIN = 0.03


def built(config: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config, use_cache=False))
    return as_loss(made, "llama")


def measured(model: nn.Module, recipe: str, batch: int) -> int:
    """The bytes that autograd saves in a step of the recipe, after one that measured."""
    torch.compiler.reset()
    found = parse(recipe)
    if found.unit_scaled:
        units.unit_scale(model, found, inner="eager", remeasure="once")
    elif found.rounds:
        units.apply_recipe(model, found, inner="eager")
    ids = torch.randint(256, (batch, LENGTH))
    model(ids, ids).backward()
    with saved_for_backward(model) as saved:
        model(ids, ids)
    return saved.bytes


def assert_close(planned: float, found: float) -> None:
    """Within 3 %: what the plan promises."""
    assert abs(planned - found) <= WITHIN * found, f"planned {planned:.0f}, measured {found}"


def test_assert_close_sees_a_difference() -> None:
    assert_close(102, 100)
    with pytest.raises(AssertionError, match="planned 104, measured 100"):
        assert_close(104, 100)


@pytest.mark.parametrize("recipe", ["fp32", "fp8", slow("fp8-current"), slow("mxfp8"), "coat"])
def test_what_is_kept_for_backward_is_what_was_planned(recipe: str) -> None:
    source = Source(name="llama", dtype="fp32", config=LLAMA)
    kept = kept_by(source, parse(recipe), length=LENGTH)
    found = measured(built(LLAMA), recipe, batch=3)
    assert_close(3 * kept.each + kept.fixed, found)


def test_recipes_are_really_followed() -> None:
    """A plan that forgot the recipe would be that of the plain model."""
    source = Source(name="llama", dtype="fp32", config=LLAMA | {"num_hidden_layers": 1})
    plain, fp8 = (kept_by(source, parse(r), length=LENGTH) for r in ("fp32", "fp8"))
    assert (plain.units, fp8.units > 0) == (0, True)
    # All weights of the products are kept in a byte each, whatever the batch.
    products = 48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 96 + 48 * 256
    assert_close(fp8.fixed - plain.fixed, products)


@pytest.mark.slow
def test_layers_that_are_not_followed_count_as_those_that_are() -> None:
    source = Source(name="llama", dtype="bf16", config=LLAMA | {"num_hidden_layers": 3})
    total = sizes_at(source).total
    assert kept_at(source, parse("fp8"), length=LENGTH, total=total) == kept_by(
        source, parse("fp8"), length=LENGTH
    )


@pytest.mark.slow
def test_ten_million_parameters_are_what_a_run_holds() -> None:
    source = Source(name="llama", dtype="fp32", config=TEN_MILLION)
    sizes, model = sizes_at(source), built(TEN_MILLION)
    assert sizes == sizes_of(model)
    assert 9e6 < sizes.total < 12e6
    kept = kept_at(source, parse("fp8"), length=LENGTH, total=sizes.total)
    plan = plan_memory(
        sizes, kept, recipe="fp8", states="fp32", dtype="fp32", ranks=1, micro_batch=2
    )
    optimizer = torch.optim.AdamW(model.parameters())
    saved = measured(model, "fp8", batch=2)
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values()]
    parameters = list(model.parameters())
    assert_close(plan.weights, sum(p.nbytes for p in parameters))
    assert_close(plan.gradients, sum(p.grad.nbytes for p in parameters if p.grad is not None))
    assert_close(plan.master + plan.moments, sum(t.nbytes for t in held))
    assert_close(plan.activations + plan.fixed, saved)
    assert plan.gathered == 0  # one rank gathers nothing
    kinds = plan.weights + plan.gradients + plan.moments + plan.activations + plan.fixed
    assert plan.total == kinds + plan.units


def test_ranks_share_what_their_sharding_says() -> None:
    sizes, kept = Sizes(total=800, largest=100), Kept(each=10.0, fixed=5.0, units=4.0)
    plans = {
        sharding: plan_memory(
            sizes,
            kept,
            recipe="fp8",
            states="coat",
            dtype="bf16",
            ranks=8,
            micro_batch=3,
            sharding=sharding,  # type: ignore[arg-type]
        )
        for sharding in ("fsdp", "zero2", "zero1", "ddp")
    }
    found = {name: (p.weights, p.gradients, p.master, p.gathered) for name, p in plans.items()}
    assert found == {
        "fsdp": (200, 200, 200, 800),
        "zero2": (1600, 200, 200, 0),
        "zero1": (1600, 1600, 200, 0),
        "ddp": (1600, 1600, 1600, 0),
    }
    assert plans["ddp"].moments == 2 * 1.0625 * 800
    assert (plans["ddp"].activations, plans["ddp"].fixed) == (30.0, 5.0)


def test_states_have_the_bytes_of_their_papers() -> None:
    beside = {
        (name, dtype): sum(state_bytes(name, dtype).values())
        for name, row in STATES.items()
        for dtype in row.weight
    }
    assert beside == {
        ("fp32", "fp32"): 8,
        ("fp32", "bf16"): 10,
        ("fp8-lm", "fp32"): 5,
        ("fp8-lm", "bf16"): 5,
        ("coat", "fp32"): 2.125,
        ("coat", "bf16"): 4.125,
        ("bf16-stochastic", "bf16"): 8,
        ("master24", "bf16"): 3.125,
    }
    # FlashOptim's 5.125 counts the BF16 parameter too.
    assert 2 + beside["master24", "bf16"] == 5.125


def test_layers_that_differ_are_all_followed() -> None:
    alike = LLAMA | {"layer_types": ["full"] * 2}
    assert Source(name="x", dtype="fp32", config=alike).depth == 2
    mixed = LLAMA | {"layer_types": ["full", "sliding"]}
    assert Source(name="x", dtype="fp32", config=mixed).depth is None
    assert Source(name="x", dtype="fp32", factory="llama").depth is None


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["unitscale", "plan-memory", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_command_prints_every_kind_for_every_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "llama.json"
    path.write_text(json.dumps(LLAMA | {"num_hidden_layers": 1}))
    line = ["--config", path, "--ranks", 4, "--states", "all", "--recipe", "fp8"]
    assert command(monkeypatch, *line, "--sequence-length", LENGTH, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [plan["states"] for plan in found["plans"]] == list(STATES)
    for plan in found["plans"]:
        kinds = {k: v for k, v in plan.items() if isinstance(v, int | float) and k != "total"}
        assert len(kinds) == 8
        assert plan["total"] == sum(kinds.values())
    assert command(monkeypatch, *line, "--dtype", "fp32", "--sequence-length", LENGTH) == 0
    said = "left out, for other weights than fp32: bf16-stochastic, master24"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_labels_say_what_is_held_in_what(dtype: str) -> None:
    """The recipe `fp32` on BF16 parameters multiplies in BF16, and the states `fp32` do not."""
    recipes = [parse("fp32"), parse("fp8")]
    lines = legend(recipes, ["fp32", "fp8-lm"], dtype)
    assert [line.split(":")[0] for line in lines] == ["recipe fp32", "states fp32", "states fp8-lm"]
    assert lines[0].endswith(f"products and activations are in {dtype}")
    assert "moments (both fp32)" in lines[1]
    assert held_in("fp8-lm", dtype)["gradients"] == dtype


def test_table_is_in_a_unit_that_shows_something() -> None:
    assert unit_for(2e11) == (1e9, "GB (1e+09 bytes)")
    assert unit_for(2e6)[1] == "MB (1e+06 bytes)"
    assert unit_for(5.0)[0] == 1e3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of --config FILE and --model NAME"),
        (["--model", "llama", "--config", "x.json"], "expected one of --config FILE"),
        (["--model", "lama"], "--model is 'lama'; expected gpt2, llama or MODULE:FACTORY"),
        (["--model", "no_such:thing"], "there is no module 'no_such'"),
        (["--model", "llama", "--set", "model.widht=3"], "cannot be called with"),
        (["--model", "llama", "--set", "widht=3"], "--set widht=3: expected model.NAME=VALUE"),
        (["--model", "llama", "--ranks", "0"], "--ranks is 0; expected from 1"),
        (["--model", "llama", "--micro-batch", "-1"], "--micro-batch is -1"),
        (["--model", "llama", "--sequence-length", "0"], "--sequence-length is 0"),
        (["--model", "llama", "--recipe", "fp9"], "unknown recipe 'fp9'"),
        (["--model", "llama", "--recipe", ","], "is ','; expected names"),
        (["--model", "llama", "--states", "fp9"], "unknown states 'fp9'; expected one of fp32"),
        (
            ["--model", "llama", "--states", "master24", "--dtype", "fp32"],
            "master24 holds parameters in bf16, not in fp32; use --dtype bf16",
        ),
        (["--model", "llama", "--sharding", "fsdp3"], "--sharding is 'fsdp3'; expected one of"),
        (["--model", "llama", "--dtype", "fp16"], "--dtype is 'fp16'; expected one of bf16, fp32"),
        (["--model", "llama", "--set", "model.heads=3"], "llama failed with"),
        (
            ["--model", "gpt2", "--set", "model.context=8", "--sequence-length", "9"],
            "--sequence-length is 9, and the model has 8 positions (--set model.context)",
        ),
        (["--config", "short.json"], "and the model has 16 positions (max_position_embeddings)"),
        (["--config", "nowhere.json"], "nowhere.json does not exist"),
        (["--config", "bad.json"], "bad.json is not JSON"),
        (["--config", "list.json"], "list.json holds a list; expected a config.json"),
        (["--config", "empty.json"], "empty.json holds no model_type"),
        (["--config", "other.json"], "no causal language model of model_type 'vit'"),
        (["--config", "wrong.json"], "wrong.json: transformers cannot build it"),
        (["--config", "wrong.json", "--set", "model.a=1"], "--set is for --model"),
    ],
)
def test_wrong_option_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {
        "bad": "{",
        "list": "[]",
        "empty": "{}",
        "other": '{"model_type": "vit"}',
        "short": '{"model_type": "llama", "max_position_embeddings": 16}',
        "wrong": '{"model_type": "llama", "hidden_size": "many"}',
    }
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1, err
