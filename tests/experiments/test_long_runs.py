import json
from pathlib import Path

import long_runs

LOST = (
    "fp8: of the value (forward pass) of 'a.b' {high}% saturated and "
    "{low}% went to zero, at the scale."
)


def write(
    folder: Path, *, remeasure="geometric", valid=2.0, diverged=False, lost=()
) -> long_runs.Run:
    folder.mkdir(parents=True)
    config = {"recipe": "fp8", "remeasure": remeasure}
    result = {"valid_loss": valid, "final_train_loss": valid - 0.5, "diverged": diverged}
    log = [{"step": 0, "measured": True}, {"step": 1, "loss": 3.0}]
    log += [{"step": step, "measured": True, "lost": [line]} for step, line in lost]
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return long_runs.read(folder)


def test_a_row_has_the_mean_over_seeds_and_the_worst_loss_of_any(tmp_path):
    lost = [(8, LOST.format(high=0.0, low=59.1)), (16, LOST.format(high=60.2, low=1.0))]
    runs = [write(tmp_path / "a", valid=2.0), write(tmp_path / "b", valid=2.2, lost=lost)]
    row = long_runs.table(runs).splitlines()[2]
    assert row == (
        "| fp8 | 2 | 1.6000 ± 0.1414 | 2.1000 ± 0.1414 | 1/3 "
        "| 1 % to zero, 60.2 % at the maximum, step 16 |"
    )


def test_runs_that_diverged_are_counted_and_not_averaged(tmp_path):
    runs = [write(tmp_path / "a", valid=2.0), write(tmp_path / "b", valid=9.0, diverged=True)]
    assert "| 1.5000 (1 diverged) | 2.0000 |" in long_runs.table(runs)
    assert "| diverged | diverged |" in long_runs.table(runs[1:])


def test_another_schedule_is_another_row(tmp_path):
    runs = [write(tmp_path / "a"), write(tmp_path / "b", remeasure="once")]
    assert [line.split(" | ")[0] for line in long_runs.table(runs).splitlines()[2:]] == [
        "| fp8",
        "| fp8, once",
    ]
