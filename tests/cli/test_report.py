"""`unitscale report` and `unitscale figure`: files written, wrong arguments in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from report.sample import RESULTS, recording_rows
from unitscale.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["unitscale", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "numerics.jsonl"
    rows = recording_rows(steps=[0, 50, 100], fault_at=50, layer=1)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def comparison(tmp_path: Path, recording: Path) -> Path:
    folder = tmp_path / "comparison"
    for entry in RESULTS["runs"]:
        own = folder / "runs" / f"{entry['recipe']}-seed{entry['seed']}"
        own.mkdir(parents=True)
        (own / "log.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": null}\n')
        (own / "numerics.jsonl").write_bytes(recording.read_bytes())
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


def test_comparison_has_a_report(
    comparison: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "report", comparison) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    page = (comparison / "report.html").read_text(encoding="utf-8")
    assert "<b>fp8-none seed 1</b>: At step 50 the gradients of layers.1 fell by 2^20" in page
    cells = "</td><td class='text'>".join(["fp8", "grad_input", "E5M2 unit", "E4M3FN unit"])
    assert f"<td class='text'>{cells}</td>" in page
    assert len(page.encode()) < 5_000_000


def test_run_that_is_not_finished_has_a_report(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = {"config": {"recipe": "fp8", "model": {}, "steps": 9}, "data": "text"}
    (tmp_path / "config.json").write_text(json.dumps(description))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"st')
    assert run(monkeypatch, "report", tmp_path, "--out", tmp_path / "x.html") == 0
    assert "At step 50 the gradients of layers.1" in (tmp_path / "x.html").read_text("utf-8")


def test_recording_alone_has_a_report(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "report", recording) == 0
    assert recording.with_name("report.html").exists()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_drawn(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    for kind in ("exponents", "depth"):
        out = tmp_path / f"{kind}.{suffix}"
        assert run(monkeypatch, "figure", kind, recording, "--out", out, "--step", 50) == 0
        assert out.stat().st_size > 3000


def test_comparison_has_a_figure_for_each_recorded_run(
    comparison: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = comparison / "depth.png"
    arguments = ("figure", "depth", comparison, "--out", out, "--label", "1", "--json")
    assert run(monkeypatch, *arguments) == 0
    drawn = json.loads(capsys.readouterr().out)
    names = sorted(path.name for path in (comparison / "runs").iterdir())
    assert [one["run"] for one in drawn] == names
    for one in drawn:
        assert Path(one["figure"]) == comparison / f"depth-{one['run']}.png"
        assert Path(one["figure"]).exists()
        assert (one["step"], one["labeled"]) == (100, ["layers.1.linear (gradient)"])


def test_report_says_its_verdict_as_json(
    comparison: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "report", comparison, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(comparison / "report.html")
    assert found["outcome"].startswith("fp32 ends at a validation loss of 1.500")
    assert [row["recipe"] for row in found["summary"]] == ["fp32", "fp8", "fp8-none"]
    assert found["losses_blank_from_step"]["fp8"] == 2
    losses = {one["run"]: one["losses"] for one in found["verdicts"]}
    assert losses["fp32 seed 0"] == []  # it rounds nothing
    (loss,) = losses["fp8 seed 0"]
    assert loss["series"] == {
        "name": "layers.1.linear",
        "op": "linear",
        "direction": "gradient",
    }
    assert (loss["step"], loss["share"]) == (50, 1.0)


def test_report_of_a_recording_alone_is_json_too(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "report", recording, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["outcome"], found["summary"]) == ("", [])
    assert "layers.1.linear (gradient)" in found["verdicts"][0]["verdict"]


def test_run_of_an_existing_model_is_called_by_its_name(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"recipe": "fp8", "existing": "llama", "model": {"width": 32}, "steps": 9}
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "data": "text"}))
    assert run(monkeypatch, "report", tmp_path) == 0
    assert "llama model on text" in (tmp_path / "report.html").read_text("utf-8")


def test_commands_are_completed_by_a_shell() -> None:
    code = "import sys; sys.argv[0] = 'unitscale'; from unitscale.cli import main; main()"
    asked = {"COMP_WORDS": "unitscale re", "COMP_CWORD": "1"}
    environment = os.environ | asked | {"_UNITSCALE_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.split()) == ["recipes", "report"]


def test_snr_needs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "snr.svg"
    assert run(monkeypatch, "figure", "snr", "--formats", "E4M3FN, E5M2", "--out", out) == 0
    assert "E4M3FN" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere holds no run"),
        (["figure", "depth"], "needs a RUN_DIR"),
        (["figure", "depth", "nowhere"], "nowhere does not exist"),
        (["figure", "depth", "."], "record a run with --set record_every=50"),
        (["figure", "depth", "RECORDING", "--label", "0"], "label is 0; expected at least 1"),
        (["figure", "depth", "RECORDING", "--label", "x.y"], "'x.y' matches no tensor"),
        (["figure", "depth", "RECORDING", "--label", ""], "label is empty"),
        (["report", "RECORDING", "--out", "."], "expected the name of a file"),
        (["figure", "depth", "RECORDING", "--step", "7"], "the recorded steps are [0, 50, 100]"),
        (["figure", "depth", "RECORDING", "--out", "x.bmp"], "bmp"),
        (["figure", "depth", "RECORDING", "--out", "x.pgf"], "expected .png, .svg or .pdf"),
        (["figure", "depth", "RECORDING", "--out", ""], "expected the name of a file"),
        (["figure", "depth", "RECORDING", "--out", "no/x.png"], "folder of no/x.png does not"),
        (["report", "RECORDING", "--out", "no/x.html"], "folder of no/x.html does not exist"),
        (["figure", "snr", "--formats", "E4M3FX"], "E4M3FX"),
        (["figure", "snr", "--formats", ","], "--formats names no format"),
    ],
)
def test_wrong_arguments_are_one_line(
    recording: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    folder = recording.parent / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    arguments = [str(recording) if x == "RECORDING" else x for x in arguments]
    assert run(monkeypatch, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_damaged_recording_is_named(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recording.write_text(recording.read_text() + "not json\n")
    assert run(monkeypatch, "report", recording) == 2
    assert "is damaged" in capsys.readouterr().err
