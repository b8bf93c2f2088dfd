"""What importing costs. Fresh interpreters, since this one has torch loaded."""

import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import unitscale
from house.tree import TORCH_FREE

# The file is free of torch (tests/house/test_tree.py), but its package loads torch beside it.
LOADED_WITH_TORCH = {"units.assign"}

NO_TORCH = "import sys; assert 'torch' not in sys.modules, 'torch was imported by {}'"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def assert_imports_no_torch(code):
    done = run(f"{code}\n{NO_TORCH.format('this')}")
    assert done.returncode == 0, done.stderr


def test_assert_imports_no_torch_sees_torch():
    with pytest.raises(AssertionError, match="torch was imported"):
        assert_imports_no_torch("import torch")


def test_package_imports_no_torch():
    assert_imports_no_torch("import unitscale; unitscale.__version__; dir(unitscale)")


def test_torch_free_modules_import_no_torch_through_others():
    """All in one interpreter, which says after which of them torch is there."""
    names = []
    for name in sorted({*TORCH_FREE} - LOADED_WITH_TORCH):
        module = importlib.import_module(f"unitscale.{name}")
        below = pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}.")
        names += [module.__name__, *(info.name for info in below)]
    assert names
    assert_imports_no_torch("\n".join(f"import {name}; {NO_TORCH.format(name)}" for name in names))


def test_help_imports_no_torch():
    assert_imports_no_torch(
        "import contextlib, sys, unitscale.cli\n"
        "sys.argv = ['unitscale', '--help']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    unitscale.cli.main()"
    )


def test_importing_everything_starts_no_device():
    code = (
        "import unitscale, torch\n"
        "for name in unitscale.__all__: getattr(unitscale, name)\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not getattr(torch, 'xpu').is_initialized()"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_found_and_listed():
    assert set(unitscale.__all__) == set(dir(unitscale))
    assert isinstance(unitscale.optim, types.ModuleType)
    assert callable(unitscale.units)
    with pytest.raises(AttributeError, match="module 'unitscale' has no attribute 'unit_sale'"):
        _ = unitscale.unit_sale
