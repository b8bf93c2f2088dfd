"""`unitscale compare` and `unitscale train`, run as a user runs them on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from train.tiny import text_corpus
from unitscale.cli import main
from unitscale.cli.compare import left_out, reasons

TINY = ["--width", "32", "--depth", "1", "--batch-size", "4", "--sequence-length", "16"]
TINY += ["--set", "eval_windows=8"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return text_corpus(tmp_path).train.pieces[0].path


class Command:
    """Runs the command line in this process."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: Path
    ) -> None:
        self.capsys, self.monkeypatch, self.data = capsys, monkeypatch, data

    def __call__(self, command: str, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of one command on the tiny model."""
        line = [command, "--data", self.data, *TINY, *arguments]
        self.monkeypatch.setattr(sys, "argv", ["unitscale", *map(str, line)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = self.capsys.readouterr()
        return stopped.value.code or 0, out, err


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: Path
) -> Command:
    return Command(capsys, monkeypatch, data)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# fp32-units, which was not asked for, says what of the difference is the parametrization.
WITH_CONTROL = ["fp32", "fp32-units", "fp8"]

RUN_KEYS = {
    "recipe",
    "final_train_loss",
    "valid_loss",
    "diverged",
    "tokens_per_s",
    "peak_bytes_saved_for_backward",
    "share_in_range",
    "coverage",
}


def test_comparison_writes_its_results_and_prints_them_as_json(
    command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = command(
        *("compare", "--steps", 6, "--seeds", 2, "--recipes", "fp32,fp8"),
        *("--out", out, "--json"),
    )
    assert code == 0, stderr
    results = json.loads(stdout)
    assert json.loads((out / "results.json").read_text()) == results
    assert (results["data"], results["model"], results["steps"]) == ("text.txt", "attention", 6)
    assert [(run["recipe"], run["seed"]) for run in results["runs"]] == [
        (recipe, seed) for seed in (0, 1) for recipe in WITH_CONTROL
    ]
    for run in results["runs"]:
        assert run.keys() >= RUN_KEYS
        assert run["share_in_range"].keys() == {"activations", "gradients", "weights"}
        assert run["peak_bytes_saved_for_backward"] > 0
        assert run["coverage"] == (1.0 if run["recipe"].startswith("fp8") else None)
        assert (out / "runs" / f"{run['recipe']}-seed{run['seed']}" / "log.jsonl").exists()
    assert [row["recipe"] for row in results["summary"]] == WITH_CONTROL
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert "fp32-units" in (out / "report.html").read_text()
    assert "fp8 seed 1: step 6/6  loss " in stderr


def test_comparison_prints_a_table(command: Command, tmp_path: Path) -> None:
    code, stdout, _ = command("compare", "--steps", 2, "--recipes", "fp32", "--out", tmp_path / "x")
    assert code == 0
    assert "attention model on text.txt: 2 steps, 1 seed" in stdout
    assert "report.html" in stdout


def test_finished_comparison_resumes_to_the_same_results(command: Command, tmp_path: Path) -> None:
    line = ["compare", "--steps", 3, "--recipes", "fp32", "--out", tmp_path / "out", "--json"]
    _, first, _ = command(*line)
    before = files(tmp_path / "out")
    code, _, err = command(*line)
    assert (code, err.count("\n")) == (2, 1)
    assert "add --resume" in err
    assert files(tmp_path / "out") == before
    code, again, _ = command(*line, "--resume")
    assert code == 0
    assert again == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--steps", 4], "its steps is 3 and not 4"),
        (["--width", 64], "its width is 32 and not 64"),
        (["--recipes", "fp32-units"], "also holds the run fp32-seed0"),
    ],
)
def test_comparison_of_something_else_does_not_resume(
    changes: list[Any], message: str, command: Command, tmp_path: Path
) -> None:
    line = ["compare", "--steps", 3, "--out", tmp_path / "out"]
    command(*line, "--recipes", "fp32")
    before = files(tmp_path / "out")
    recipes = [] if "--recipes" in changes else ["--recipes", "fp32"]  # which would add up
    code, _, err = command(*line, "--resume", *recipes, *changes)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert files(tmp_path / "out") == before


def test_damaged_checkpoint_is_one_line_and_exit_code_1(command: Command, tmp_path: Path) -> None:
    line = ["train", "--recipe", "fp32", "--steps", 3, "--out", tmp_path / "run"]
    command(*line)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"garbage")
    before = files(tmp_path / "run")
    code, out, err = command(*line, "--resume")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "checkpoint.safetensors is not a checkpoint of this run" in err
    assert files(tmp_path / "run") == before


def test_train_prints_its_result_as_json(command: Command, tmp_path: Path) -> None:
    line = ["train", "--recipe", "fp32", "--steps", 3, "--out", tmp_path / "run", "--seed", 5]
    code, stdout, _ = command(*line, "--json")
    assert code == 0
    result = json.loads(stdout)
    assert (result["recipe"], result["seed"], result["steps_done"]) == ("fp32", 5, 3)
    code, stdout, _ = command(*line, "--resume")
    assert code == 0
    assert "fp32" in stdout


def test_ctrl_c_leaves_a_folder_that_resumes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = [sys.executable, "-m", "unitscale", "compare", "--data", data, *TINY]
    line += ["--recipes", "fp32,fp32-units", "--steps", "100000", "--out", out, "--threads", "1"]
    log = out / "runs" / "fp32-seed0" / "log.jsonl"
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        while not (log.exists() and log.read_text().count("\n") > 20):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert stderr.count("Traceback") == 0
    last = stderr.splitlines()[-1]
    assert last.startswith("unitscale: stopped after step ")
    assert last.endswith("--resume continues from there")
    steps = json.loads(log.read_text().splitlines()[-1])["step"]
    assert f"after step {steps} of 100000" in last
    assert sorted(path.name for path in log.parent.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "log.jsonl",
    ]


def test_what_is_not_rounded_is_said_with_its_reasons(command: Command, tmp_path: Path) -> None:
    line = ["compare", "--steps", 1, "--recipes", "mxfp8,fp8-none", "--out", tmp_path / "out"]
    code, out, err = command(*line)
    assert code == 0, err
    runs = {
        run["recipe"]: run
        for run in json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    }
    shares = runs["mxfp8"]["full_precision"]
    assert sum(shares.values()) == pytest.approx(1 - runs["mxfp8"]["coverage"], abs=2e-4)
    (why,) = shares
    assert why == "recipe mxfp8 has no rule for attention products"
    assert runs["fp8-none"]["full_precision"] == {}
    text = " ".join(out.split())
    assert "mxfp8 rounds " in text
    assert f"{shares[why]:.1%} {why}" in text
    assert "us.summary" not in text  # of which there is no model here


def test_train_with_ones_own_recipe_says_what_it_leaves_out(
    command: Command, tmp_path: Path
) -> None:
    text = "from dataclasses import replace\nfrom unitscale.recipes import RECIPES\n"
    (tmp_path / "of_train.py").write_text(text + "R = replace(RECIPES['mxfp8'], name='mine')\n")
    recipe = f"{tmp_path / 'of_train.py'}:R"
    code, out, err = command("train", "--steps", 1, "--recipe", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    assert "mine rounds " in out
    assert "recipe mine has no rule for attention products" in " ".join(out.split())
    assert json.loads((tmp_path / "run" / "result.json").read_text())["recipe"] == "mine"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"]["rules"].startswith("mine: ")
    assert "mine: a run of 1 step<" in (tmp_path / "run" / "report.html").read_text()
    code, _, err = command("train", "--recipe", "rivals", "--out", tmp_path / "other")
    assert (code, err.count("\n")) == (2, 1)
    assert "'rivals' is a group of 17 recipes; expected one" in err


def test_many_reasons_are_counted() -> None:
    text = reasons({"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.05})
    assert text == "30.0% a; 20.0% b; 10.0% c; 1 more in results.json"


def test_recipes_that_leave_out_the_same_have_one_line() -> None:
    def run(recipe: str, coverage: float | None, why: str = "") -> dict[str, object]:
        return {"recipe": recipe, "coverage": coverage, "full_precision": {why: 0.2}}

    runs = [
        run("fp32", None),
        run("mxfp8", 0.8, "recipe mxfp8 has no rule for attention products"),
        run("fp8", 1.0),
        run("nvfp4", 0.8, "recipe nvfp4 has no rule for attention products"),
        run("fp8-block", 0.8, "blocks of 128 do not divide an axis"),
    ]
    start = "rounds 80.0% of the multiply-adds of this model; the rest is in full precision: 20.0%"
    assert left_out({"runs": runs}) == [
        f"mxfp8, nvfp4 {start} the recipe has no rule for attention products",
        f"fp8-block {start} blocks of 128 do not divide an axis",
    ]
