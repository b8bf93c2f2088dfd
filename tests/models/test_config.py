"""The settings are checked when they are made, and cost no torch."""

import dataclasses
import json
import subprocess
import sys

import pytest

from unitscale.models import CharLMConfig


def test_config_survives_json() -> None:
    config = CharLMConfig(layer="conv", residual="fixed", tau=0.3, unit_scaled=True)
    assert CharLMConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"width": 0}, ValueError, "width=0 must be at least 1"),
        ({"depth": 2.0}, TypeError, "depth=2.0 must be an int"),
        ({"heads": True}, TypeError, "heads=True must be an int"),
        ({"unit_scaled": 1}, TypeError, "unit_scaled=1 must be a bool"),
        ({"layer": "mamba"}, ValueError, "unknown layer 'mamba'; use attention, conv, rnn"),
        ({"norm": None}, ValueError, "unknown norm None; use pre, post, none, res-post"),
        ({"residual": "sum"}, ValueError, "unknown residual 'sum'; use default, fixed"),
        ({"activation": "tanh"}, ValueError, "unknown activation 'tanh'"),
        ({"width": 130}, ValueError, r"width=130 is not a multiple of 2 \* heads=4"),
        ({"width": 100, "layer": "conv"}, ValueError, "width=100 is not a multiple of 8"),
        ({"dropout": 1.0}, ValueError, r"dropout=1.0 is not in \[0, 1\)"),
        ({"tau": 0.5}, ValueError, "tau=0.5 has no meaning for residual='default'"),
        ({"tau": 1.0, "residual": "fixed"}, ValueError, "tau=1.0 is not between 0 and 1.0"),
        ({"tau": -1.0, "residual": "ratio"}, ValueError, "tau=-1.0 is not between 0 and inf"),
    ],
)
def test_bad_field_is_named(fields: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        CharLMConfig(**fields)


def test_config_imports_no_torch() -> None:
    code = "import sys; from unitscale.models import CharLMConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
