"""Every script in examples/ runs, and what it trains learns."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def run(*arguments: str) -> str:
    """What a Python command prints, in the folder of the examples."""
    line = [sys.executable, *arguments]
    done = subprocess.run(line, cwd=EXAMPLES, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_learns(output: str) -> None:
    match = re.search(r"^loss ([\d.]+) -> ([\d.]+)$", output, re.MULTILINE)
    assert match, output
    first, last = map(float, match.groups())
    assert 5.4 < first < 5.7  # ln 256 is 5.55
    assert last < 4.0


def losses(processes: int, *options: str) -> list[float]:
    output = run(*TORCHRUN, str(processes), "data_parallel.py", "--steps", "4", *options)
    (line,) = (line for line in output.splitlines() if line.startswith("losses "))
    return [float(word) for word in line.split()[1:]]


def test_plain_loop_leaves_an_ordinary_checkpoint() -> None:
    output = run("plain_loop.py")
    assert_learns(output)
    assert "reloaded equal: True" in output


FRAMEWORKS = {
    "with_lightning.py": "lightning",
    "with_accelerate.py": "accelerate",
    "trainer.py": "accelerate",
}


def test_scripts_of_frameworks() -> None:
    """One process for all: what they import takes longer than what they do."""
    scripts = [script for script, needs in FRAMEWORKS.items() if find_spec(needs)]
    if not scripts:
        pytest.skip(f"none of {', '.join(FRAMEWORKS.values())} is installed")
    code = "import runpy, sys; [runpy.run_path(path, run_name='__main__') for path in sys.argv[1:]]"
    output = run("-c", code, *scripts)
    lines = [line for line in output.splitlines() if line.startswith("loss ")]
    assert len(lines) == len(scripts), output
    for line in lines:
        assert_learns(line)
    if "trainer.py" in scripts:
        assert "resumed equal: True" in output


def test_two_processes_have_the_losses_of_one() -> None:
    """With units alone; the bound is float32's error of a mean of 504 losses of about 5."""
    one = losses(1, "--recipe", "fp32-units")
    assert losses(2, "--recipe", "fp32-units", "--fsdp") == pytest.approx(one, abs=1e-6)


@pytest.mark.slow
def test_two_processes_under_ddp_have_the_losses_of_one() -> None:
    one = losses(1, "--recipe", "fp32-units")
    assert losses(2, "--recipe", "fp32-units") == pytest.approx(one, abs=1e-6)


@pytest.mark.slow
def test_two_processes_in_fp8_are_within_its_rounding() -> None:
    assert losses(2) == pytest.approx(losses(1), abs=1e-2)
