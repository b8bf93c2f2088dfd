"""What a run shows while it trains: the loss, and the worst tensor once it was recorded."""

import re

import pytest

from unitscale.cli.progress import RunProgress, SweepProgress
from unitscale.cli.sweep import swept
from unitscale.sweep.grid import grid_of

NUMERICS = {"worst": "trunk.2.add (gradient)", "worst_lost_fraction": 0.991, "losing_fraction": 0.4}
WORST = "40% of tensors lose over 1 %, most 99.1%: trunk.2.add (gradient)"


def show_run(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr gets of a run of 20 steps, of which the tenth is recorded."""
    with RunProgress(steps=20) as progress:
        for step in range(1, 21):
            record = {"step": step, "loss": 3.0 - step / 100, "tokens_per_s": 1234.0}
            progress.show("fp8", record | ({"numerics": NUMERICS} if step == 10 else {}))
        progress.show("fp8", {"step": 20, "valid_loss": 2.5})
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)


def test_lines_name_the_worst_tensor_from_its_sample_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = show_run(capsys).splitlines()
    assert lines[0] == "fp8: step 2/20  loss 2.980  1,234 tokens/s"
    assert lines[3] == "fp8: step 8/20  loss 2.920  1,234 tokens/s"
    assert [line.endswith(WORST) for line in lines] == [False] * 4 + [True] * 6


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_shows_the_bar_and_below_it_the_worst_tensor(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TTY_COMPATIBLE", "1"), ("COLUMNS", str(width)), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    *_, bar, worst = (line.strip() for line in show_run(capsys).splitlines() if line.strip())
    assert bar.startswith("fp8 ")
    assert "20/20 loss 2.800  1,234 tokens/s" in bar
    assert worst == f"fp8: {WORST}"[: width - 1]


def test_runs_of_a_sweep_are_called_by_what_is_swept(capsys: pytest.CaptureFixture[str]) -> None:
    content = {"recipe": "fp8", "steps": 1, "model": {"ffn_act_mult": [1.0, 2.0], "width": 64}}
    points = grid_of(content).points
    with SweepProgress(runs=2, swept=swept(points)) as progress:
        for point in points:
            progress.ended({"name": point.name, "status": "done", "loss": 1.5, "reason": ""})
    said = capsys.readouterr().err.splitlines()
    expected = [
        f"{p.name} model.ffn_act_mult={p.options['ffn_act_mult']}: loss 1.5000" for p in points
    ]
    assert [line.partition(" ")[2] for line in said] == expected
    assert swept(points[:1]) == {points[0].name: ""}
