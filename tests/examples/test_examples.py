"""Every script in examples/ runs, and what it trains learns."""

import os
import re
import runpy
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest

from processes import start_together

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


FRAMEWORKS = {
    "with_lightning.py": "lightning",
    "with_accelerate.py": "accelerate",
    "trainer.py": "accelerate",
}
DATA_PARALLEL = "data_parallel.py --steps 4 --recipe fp32-units"

SCRIPTS = """
import os, runpy, sys
for line in sys.argv[1:]:
    print("==", line, flush=True)
    script, *sys.argv[1:] = line.split()
    one_rank = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    if script == "data_parallel.py":
        os.environ |= one_rank
    runpy.run_path(script, run_name="__main__")
    for name in one_rank:
        os.environ.pop(name, None)
"""
"""What torchrun would say to one process is in the environment of one script, and of no other."""


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What every script printed. One process for all: their imports take longer than they do."""
    scripts = [script for script, needs in FRAMEWORKS.items() if find_spec(needs)]
    output = run("-c", SCRIPTS, DATA_PARALLEL, "plain_loop.py", *scripts)
    parts = [part.partition("\n") for part in ("\n" + output).split("\n== ")[1:]]
    return {line: text for line, _, text in parts}


def losses_in(output: str) -> list[float]:
    (line,) = (line for line in output.splitlines() if line.startswith("losses "))
    return [float(word) for word in line.split()[1:]]


def as_rank(rank: int, count: int, port: int, out: Path, *options: str) -> None:
    """One process of `data_parallel.py`, with what torchrun says to it."""
    os.chdir(EXAMPLES)
    sys.path.insert(0, str(EXAMPLES))
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)} | address
    sys.argv = ["data_parallel.py", "--steps", "4", *options]
    with (out / str(rank)).open("w") as file, redirect_stdout(file):
        runpy.run_path("data_parallel.py", run_name="__main__")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def losses(processes: int, *options: str) -> list[float]:
    return losses_in(run(*TORCHRUN, str(processes), "data_parallel.py", "--steps", "4", *options))


def test_plain_loop_leaves_an_ordinary_checkpoint(printed: dict[str, str]) -> None:
    assert_learns(printed["plain_loop.py"])
    assert "reloaded equal: True" in printed["plain_loop.py"]


@pytest.mark.parametrize(("script", "needs"), FRAMEWORKS.items())
def test_scripts_of_frameworks(printed: dict[str, str], script: str, needs: str) -> None:
    if script not in printed:
        pytest.skip(f"{needs} is not installed")
    assert_learns(printed[script])
    if script == "trainer.py":
        assert "resumed equal: True" in printed[script]


def test_two_processes_have_the_losses_of_one(printed: dict[str, str], tmp_path: Path) -> None:
    """With units alone; the bound is float32's error of a mean of 504 losses of about 5."""
    one = losses_in(printed[DATA_PARALLEL])
    assert len(one) == 4
    start_together(as_rank, (2, free_port(), tmp_path, "--recipe", "fp32-units", "--fsdp"), 2)
    assert losses_in((tmp_path / "0").read_text()) == pytest.approx(one, abs=1e-6)


@pytest.mark.slow
def test_two_processes_of_torchrun_have_the_losses_of_one(printed: dict[str, str]) -> None:
    one = losses_in(printed[DATA_PARALLEL])
    assert losses(2, "--recipe", "fp32-units", "--fsdp") == pytest.approx(one, abs=1e-6)


@pytest.mark.slow
def test_two_processes_under_ddp_have_the_losses_of_one() -> None:
    one = losses(1, "--recipe", "fp32-units")
    assert losses(2, "--recipe", "fp32-units") == pytest.approx(one, abs=1e-6)


@pytest.mark.slow
def test_two_processes_in_fp8_are_within_its_rounding() -> None:
    assert losses(2) == pytest.approx(losses(1), abs=1e-2)
