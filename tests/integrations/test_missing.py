"""A framework that is not installed is one clear line; the others go on working."""

import sys

import pytest

import unitscale as us

CASES = [
    (
        "lightning",
        ["lightning", "lightning.pytorch.plugins.precision", "pytorch_lightning"],
        "LightningPrecision",
        "pip install lightning",
    ),
    (
        "trainer",
        ["transformers", "transformers.trainer_callback"],
        "KeepUnits",
        r"pip install 'unitscale\[hf\]'",
    ),
]


@pytest.mark.parametrize(("file", "absent", "name", "remedy"), CASES, ids=["lightning", "trainer"])
def test_what_to_install_is_said(monkeypatch, file, absent, name, remedy) -> None:
    for package in absent:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"unitscale.integrations.{file}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=f"^{name} needs .*{remedy}$"):
        getattr(us.integrations, name)
    # Loaded again without the patch, it would be a second class of the name.
    monkeypatch.undo()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Keras'"):
        us.integrations.Keras  # noqa: B018 - it raises
    assert set(dir(us.integrations)) == set(us.integrations.__all__)
