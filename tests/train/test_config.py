"""TrainConfig: what it refuses, its schedule, and its trip through JSON."""

import json
import math
import re
from typing import Any

import pytest

from unitscale.train import TrainConfig
from unitscale.train.config import STANDARD_LR, UNIT_SCALED_LR


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", "10"),
        ("steps", True),
        ("batch_size", 0),
        ("sequence_length", 1.5),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", 10**400),
        ("warmup_fraction", 1.1),
        ("weight_decay", -1),
        ("betas", (0.9, 1.0)),
        ("clip_norm", -1.0),
        ("seed", -1),
        ("eval_every", 0),
        ("inner", "nvfuser"),
        ("seed", 2**64),
        ("steps", 10**23),
        ("recipe", 5),
        ("recipe", ["fp8"]),
        ("model", 5),
        ("model", {3: 4}),
        ("device", "tpu"),
        ("device", "cuda:-1"),
        ("dtype", "fp8"),
        ("dtype", ["bf16"]),
        ("remeasure", [1]),
    ],
)
def test_value_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {re.escape(repr(value))}; expected "):
        TrainConfig(**{name: value})


def test_unknown_recipe_lists_the_legal_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'fp9'.*fp32.*fp8-e4m3.*Did you mean 'fp8'\?"):
        TrainConfig(recipe="fp9")


def test_unknown_model_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"no option 'wdth'; it has .*width"):
        TrainConfig(model={"wdth": 64})


@pytest.mark.parametrize("name", ["vocab_size", "context", "unit_scaled"])
def test_model_option_that_follows_from_the_rest_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no option '{name}'"):
        TrainConfig(model={name: 1})


def test_recipe_decides_on_the_parametrization() -> None:
    standard, unit_scaled = TrainConfig(recipe="fp8-none"), TrainConfig(recipe="fp8")
    assert not standard.model_config.unit_scaled
    assert unit_scaled.model_config.unit_scaled
    assert (standard.peak_lr, unit_scaled.peak_lr) == (STANDARD_LR, UNIT_SCALED_LR)
    assert TrainConfig(recipe="fp8", lr=0.25).peak_lr == 0.25


def test_schedule_warms_up_linearly_and_decays_along_a_cosine() -> None:
    config = TrainConfig(steps=110, lr=2.0, warmup_fraction=10 / 110, final_lr_fraction=0.1)
    assert config.lr_at(0) == 0.2
    assert config.lr_at(9) == config.lr_at(10) == 2.0
    assert config.lr_at(60) == pytest.approx(2.0 * 0.55)
    assert config.lr_at(110) == pytest.approx(0.2)


def test_config_survives_json() -> None:
    config = TrainConfig(model={"width": 64}, betas=(0.8, 0.9), clip_norm=1.0)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"no 'stpes'; it has recipe, .*steps"):
        TrainConfig.from_json({"stpes": 3})


def test_largest_seed_is_taken() -> None:
    assert TrainConfig(seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize("existing", [None, "llama", "gpt2"])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("depth", 10**22, "depth is 10000000000000000000000; expected"),
        ("width", 2**31, "width is 2147483648; expected"),
        ("heads", 0, "heads"),
        ("width", 33, "a multiple of"),
        ("width", "x", "width"),
    ],
)
def test_size_that_no_machine_holds_is_refused(
    existing: str | None, option: str, value: object, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        TrainConfig(existing=existing, model={option: value})


def test_own_factory_takes_what_it_likes() -> None:
    config = TrainConfig(existing="a.b:build", model={"depth": 10**22, "name": "x"})
    assert config.model_options["depth"] == 10**22
