"""Under DDP a checkpoint has the units of all processes, whichever of them wrote it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["trainer", "accelerate"])
def test_a_resumed_run_of_two_processes_goes_on_as_if_never_stopped(tmp_path, host) -> None:
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package)
    script = Path(__file__).with_name("two_hosts.py")
    line = [sys.executable, *TORCHRUN, str(script), host, str(tmp_path)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for found in (one, other):
        assert found["unshared"] == {}  # the last step before it measured, in each its own share
        whole, resumed = found["losses"]
        assert resumed == whole[-len(resumed) :]
        assert len(resumed) >= 3
        assert found["units"][0] == found["units"][1]
    assert one["units"] == other["units"]
