import subprocess
import sys

THEORY = [
    "constant",
    "constraints",
    "curve",
    "factors",
    "maximum",
    "quadrature",
    "recurrence",
    "softmax",
]


def torch_is_imported_by(statement: str) -> bool:
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_theory_imports_no_torch():
    names = ", ".join(f"unitscale.scaling.{name}" for name in THEORY)
    assert not torch_is_imported_by(f"import {names}")


def test_the_check_can_fail():
    assert torch_is_imported_by("sys.modules['torch'] = sys")
