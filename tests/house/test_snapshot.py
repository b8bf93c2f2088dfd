import importlib

import pytest

from house import snapshot


@pytest.mark.parametrize("name", snapshot.SNAPSHOTS)
def test_names_are_those_agreed_on(name):
    changes = snapshot.differences(snapshot.read(name), snapshot.SNAPSHOTS[name]())
    assert not changes, f"if this was meant, run: {snapshot.REWRITE}"


def test_every_public_name_exists():
    missing = [
        f"{module}.{name}"
        for module, names in snapshot.public_api().items()
        for name in names
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []


def test_difference_names_what_came_and_what_went():
    agreed = {"unitscale": ["scaled", "units"], "unitscale.old": ["f"]}
    now = {"unitscale": ["scaled", "unit_scale"], "unitscale.new": []}
    assert snapshot.differences(agreed, now) == [
        "unitscale: - units",
        "unitscale: + unit_scale",
        "unitscale.old: - f",
    ]
