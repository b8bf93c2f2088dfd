"""Event files: what TensorBoard reads of a run, also of one that was resumed."""

import sys
from pathlib import Path
from typing import Any

import pytest

from train.tiny import text_corpus, tiny_config
from unitscale.cli import main
from unitscale.report import read_recording
from unitscale.train import compare, train
from unitscale.train.run_log import read_log


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "histograms": 0})
    return found.Reload()


def test_scalars_are_those_of_the_log_and_histograms_those_of_the_recording(tmp_path: Path) -> None:
    config = tiny_config(recipe="fp8", record_every=3, eval_every=4)
    train(config, text_corpus(tmp_path), tmp_path / "run", tensorboard=True)
    found, log = events(tmp_path / "run"), read_log(tmp_path / "run" / "log.jsonl")
    for tag, key in (("loss/train", "loss"), ("loss/valid", "valid_loss"), ("lr", "lr")):
        expected = {r["step"]: r[key] for r in log if key in r}
        assert {s.step: s.value for s in found.Scalars(tag)} == pytest.approx(expected)
    numerics = {r["step"]: r["numerics"]["worst_lost_fraction"] for r in log if "numerics" in r}
    assert {
        s.step: s.value for s in found.Scalars("numerics/worst_lost_fraction")
    } == pytest.approx(numerics)
    recording = read_recording(tmp_path / "run" / "numerics.jsonl")
    tags = {"value": "values", "gradient": "gradients", "state": "moments"}
    for series in recording.series:
        rows = [row for row in series.rows if row["histogram"][1]]
        if not rows:
            continue
        seen = found.Histograms(f"{tags[series.direction]}/{series.name}")
        assert [h.step for h in seen] == [row["step"] for row in rows]
        last, (low, counts) = seen[-1].histogram_value, rows[-1]["histogram"]
        assert last.min == low + rows[-1]["held_log2"]
        filled = zip(last.bucket_limit, last.bucket, strict=True)
        limits = enumerate(counts, low + rows[-1]["held_log2"] + 1)
        assert {a: b for a, b in filled if b} == {a: b for a, b in limits if b}


def test_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    corpus, config = text_corpus(tmp_path), tiny_config(checkpoint_every=3)

    def stop(record: dict) -> None:
        if record["step"] == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, corpus, tmp_path / "run", on_record=stop, tensorboard=True)
    train(config, corpus, tmp_path / "run", resume=True, tensorboard=True)
    assert [s.step for s in events(tmp_path / "run").Scalars("loss/train")] == list(range(1, 9))


def test_comparison_writes_event_files_only_if_asked(tmp_path: Path) -> None:
    corpus, config = text_corpus(tmp_path), tiny_config(steps=2)
    list(compare([config], corpus, tmp_path / "a", tensorboard=True))
    list(compare([config], corpus, tmp_path / "b"))
    assert len(list((tmp_path / "a" / "runs" / "fp32-seed0" / "tensorboard").iterdir())) == 1
    assert not list((tmp_path / "b").rglob("tensorboard"))


@pytest.mark.parametrize("command", ["train", "compare"])
def test_missing_package_is_one_line_before_anything_is_written(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["unitscale", command, "--tensorboard", "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "unitscale: --tensorboard needs the package tensorboard; run: pip install "
        "'unitscale[tensorboard]'\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "options", [["train"], ["compare", "--recipes", "fp32"]], ids=["train", "compare"]
)
def test_option_of_the_command_line_writes_event_files(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_corpus(tmp_path)
    small = ["--width", "32", "--depth", "1", "--batch-size", "4", "--sequence-length", "16"]
    few = ["--steps", "2", "--set", "eval_windows=8", "--data", str(tmp_path / "text.txt")]
    where = ["--tensorboard", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["unitscale", *options, *small, *few, *where])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    assert len(list((tmp_path / "out").rglob("events.out.tfevents.*"))) == 1
