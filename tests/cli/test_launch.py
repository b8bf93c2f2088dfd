"""The command on several ranks: what is refused at once, and how a job ends when a rank does.

What torchrun starts takes longer to import than to run, so one job is ended in several ways, and
that is slow; `train/test_ranks` has the numbers.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unitscale.cli import main
from unitscale.cli.exit import one_line
from unitscale.cli.launch import joined, world_size
from unitscale.cli.train import diverged
from unitscale.train import RankError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "tp"}, "--parallel is 'tp'; expected ddp or fsdp2"),
        ({"parallel": "ddp"}, "--parallel is ddp, and this is one process; start the ranks with"),
        ({"accumulate": 0}, "--accumulate is 0; expected an integer from 1"),
        ({"wait": 0}, "--rank-timeout is 0; expected from 1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(options, message: str) -> None:
    given = {"parallel": None, "accumulate": 1, "device": "cpu", "wait": 9} | options
    with (
        pytest.raises(ValueError, match=message),
        joined(given.pop("parallel"), given.pop("accumulate"), **given),
    ):
        pass


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_size() == 1
    with joined(None, 4, device="cpu", wait=9) as spread:
        assert (spread.is_alone, spread.shares, spread.leads) == (True, 4, True)
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with one process
    with joined("fsdp2", 1, device="cpu", wait=9) as spread:
        assert spread.is_alone
        assert not spread.is_sharded


def test_a_gpu_that_all_ranks_would_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(
            ValueError, match="--device is cuda:1, which all ranks would share; use cuda"
        ),
        joined(None, 1, device="cuda:1", wait=9),
    ):
        pass


def ranks_by_hand(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    """What a scheduler sets, or forgets."""
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "the environment has WORLD_SIZE='two'; expected a number from 1"),
        ({"WORLD_SIZE": "0"}, "the environment has WORLD_SIZE='0'; expected a number from 1"),
        ({"WORLD_SIZE": "2"}, "the environment has RANK=''; expected a number from 0 on"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "--rank is 2; expected one from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR expected, but not set"),
    ],
)
def test_a_wrong_environment_is_named(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks_by_hand(monkeypatch, **environment)
    with pytest.raises(ValueError, match=message), joined(None, 1, device="cpu", wait=1):
        pass


@pytest.mark.parametrize("is_taken", [True, False])
def test_ranks_that_do_not_meet_are_a_line(is_taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 finds its port taken; rank 1 finds nobody there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        if is_taken:
            taken.listen()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks_by_hand(monkeypatch, WORLD_SIZE="2", RANK="0" if is_taken else "1", **address)
        words = rf"the 2 ranks did not meet at 127\.0\.0\.1:{port} within 1 s"
        with pytest.raises(RankError, match=words), joined(None, 1, device="cpu", wait=1):
            pass


def test_a_line_says_which_rank_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one_line("it  ended\nhere") == "unitscale: it ended here"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert one_line("it ended") == "unitscale, rank 1: it ended"


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({}, "and ends at step 3; its report"),
        ({"step": 3, "loss": 9.0}, "and ends at step 3; its report"),
        ({"not_finite_on": [0, 2]}, "at step 3: the loss is not finite on rank 0, 2; its report"),
    ],
)
def test_a_run_that_diverged_has_one_line(last: dict[str, object], words: str) -> None:
    assert words in diverged(3, last)


def test_a_run_that_diverged_fails_on_one_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on several ranks; what it came to is printed all the same, and on a resume."""
    monkeypatch.setattr("unitscale.report.write_report", lambda folder: None)  # which takes time
    (tmp_path / "text.txt").write_text(TEXT)
    line = ["unitscale", "train", *RUN.split(), "--recipe", "fp32", "--lr", "1e30", "--json"]
    line += ["--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run")]
    for more in (["--steps", "40"], ["--steps", "40", "--resume"]):
        monkeypatch.setattr(sys, "argv", [*line, *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert stopped.value.code == 1
        assert json.loads(out)["diverged"] is True
        assert err.count("\n") == 1
        assert err.startswith("unitscale: the run diverged, and ends at step ")


TEXT = " ".join(f"word{i * i % 97}" for i in range(5000))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
RUN = "--recipe fp32-units --batch-size 8 --sequence-length 32 --width 16 --depth 1 --device cpu"


class Job:
    """A run of two ranks that never ends by itself."""

    def __init__(self, text: Path, out: Path, *options: str) -> None:
        line = [*TORCHRUN, "unitscale", "train", *RUN.split(), "--data", str(text)]
        line += ["--out", str(out), "--steps", "100000", "--set", "checkpoint_every=3", *options]
        self.out, self.log = out, out.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log)

    def ranks(self) -> list[int]:
        """The processes of the ranks, by their number."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        found = {}
        for child in map(int, children.split()):
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(e[5:]): child for e in environment if e.startswith(b"RANK=")}
        return [found[rank] for rank in sorted(found)]

    def await_checkpoint(self, beyond: int = 0) -> None:
        """Until there is one after this step, as a run on a slow machine gets there, too."""
        while self.process.poll() is None:
            names = [p.name for p in (self.out / "checkpoints").glob("step-*[0-9]")]
            if any(int(name[5:]) > beyond for name in names):
                return
            time.sleep(0.1)
        pytest.fail(self.log.read_text())

    def lines(self) -> list[str]:
        """What our ranks said at the end; torchrun says more."""
        text = self.log.read_text()
        assert "[rank" not in text, text  # a traceback of a rank
        return [line for line in text.splitlines() if line.startswith("unitscale, rank")]


@pytest.mark.slow
def test_a_job_ends_on_all_ranks_with_a_line_each_and_goes_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = tmp_path / "run"
    endings = [
        (signal.SIGKILL, 1, [], ["another of the 2 ranks has ended or did not answer"]),
        (signal.SIGKILL, 0, ["--parallel", "fsdp2"], ["another of the 2 ranks has ended"]),
        (signal.SIGTERM, None, [], ["stopped after step", "stopped after step"]),
        (signal.SIGTERM, 1, ["--accumulate", "2"], ["stopped after step", "stopped after step"]),
        # A terminal sends it to all, and torchrun passes it on to ranks that had it.
        (signal.SIGINT, "all", [], ["stopped after step", "stopped after step"]),
    ]
    beyond = 0
    for number, rank, options, wanted in endings:
        job = Job(text, out, "--resume", *options)
        job.await_checkpoint(beyond)
        begin = time.monotonic()
        if rank == "all":
            for process in (*job.ranks(), job.process.pid):
                os.kill(process, number)
        else:
            os.kill(job.process.pid if rank is None else job.ranks()[rank], number)
        assert job.process.wait(timeout=120) != 0
        # torchrun kills what does not end within 30 s; nothing of ours waits for more.
        assert time.monotonic() - begin < 60
        said = job.lines()
        assert len(said) == len(wanted), said
        for line, text_of in zip(sorted(said), wanted, strict=True):
            assert text_of in line
        beyond = max(int(p.name[5:]) for p in (out / "checkpoints").glob("step-*[0-9]"))
