"""A run that records its numerics: the file, the log, resuming, and the same bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from marks import all_but, slow
from train.tiny import text_corpus, tiny_config
from unitscale.report import judge, read_recording
from unitscale.train import CheckpointError, train
from unitscale.train.run_log import check_recording


def test_recorded_run_leaves_a_recording_and_the_same_bits(tmp_path: Path) -> None:
    corpus, records = text_corpus(tmp_path), []
    recorded = tiny_config(recipe="fp8", record_every=3)
    result = train(recorded, corpus, tmp_path / "a", on_record=records.append)
    other = train(tiny_config(recipe="fp8"), corpus, tmp_path / "b")
    assert result.valid_loss == other.valid_loss
    kept = [load_file(tmp_path / run / "checkpoint.safetensors") for run in "ab"]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[1])
    recording = read_recording(tmp_path / "a" / "numerics.jsonl")
    assert recording.steps == [2, 3, 6]
    assert {series.direction for series in recording.series} == {"value", "gradient", "state"}
    found = {r["step"]: r["numerics"] for r in records if "numerics" in r}
    assert list(found) == [2, 3, 6]
    assert found[6]["worst"]
    assert not (tmp_path / "b" / "numerics.jsonl").exists()


FORMATS = {
    "fp8": ["E4M3FN", "E5M2"],
    "fp8-none": ["E4M3FN", "E5M2"],
    "fp8-delayed": ["E4M3FN", "E5M2"],
    "fp16-loss-dynamic": ["FP16"],
    "mxfp8": ["E4M3FN"],  # of a block, the format of its elements
    "nvfp4": ["E2M1FN"],
}


@pytest.mark.parametrize(
    "recipe", all_but(FORMATS, ("fp32", "fp8", "fp8-delayed", "nvfp4").__contains__)
)
def test_every_kind_of_recipe_is_recorded_in_its_formats(tmp_path: Path, recipe: str) -> None:
    config = tiny_config(recipe=recipe, steps=4, record_every=2)
    train(config, text_corpus(tmp_path), tmp_path / "run")
    recording = read_recording(tmp_path / "run" / "numerics.jsonl")
    assert list(recording.formats) == FORMATS[recipe]
    assert recording.steps == [2, 4]


@pytest.mark.parametrize(
    "recipe", ["fp8-cscale", slow("fp8-none"), "fp8-current", slow("nvfp4"), "mxfp8"]
)
def test_progress_judges_no_scale_that_the_recipe_computes(tmp_path: Path, recipe: str) -> None:
    config, records = tiny_config(recipe=recipe, steps=2, record_every=2), []
    train(config, text_corpus(tmp_path), tmp_path / "run", on_record=records.append)
    (found,) = [record["numerics"] for record in records if "numerics" in record]
    is_given = recipe in ("fp8-cscale", "fp8-none")
    assert ("worst" in found, "not_judged" in found) == (is_given, not is_given)
    verdict = judge(read_recording(tmp_path / "run" / "numerics.jsonl"))
    assert any("what is lost at those scales" in x for x in verdict.sentences) != is_given


def test_resumed_run_ends_with_the_same_recording(tmp_path: Path) -> None:
    corpus = text_corpus(tmp_path)
    config = tiny_config(record_every=2, checkpoint_every=3)

    def stop(record: dict) -> None:
        if record["step"] == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, corpus, tmp_path / "a", on_record=stop)
    train(config, corpus, tmp_path / "a", resume=True)
    train(config, corpus, tmp_path / "b")
    rows = [(tmp_path / run / "numerics.jsonl").read_text().splitlines() for run in "ab"]
    a, b = (read_recording(tmp_path / run / "numerics.jsonl") for run in "ab")
    assert a.steps == b.steps == [2, 4, 6, 8]
    assert len(rows[0]) == len(rows[1])
    for mine, other in zip(a.series, b.series, strict=True):
        assert [r["rms"] for r in mine.rows] == [r["rms"] for r in other.rows]


@pytest.mark.parametrize("damage", ["edited", "lost", slow("moved"), slow("without")])
def test_recording_that_was_changed_is_refused_before_anything_changes(
    tmp_path: Path, damage: str
) -> None:
    corpus = text_corpus(tmp_path)
    config = tiny_config(record_every=2, checkpoint_every=3)

    def stop(record: dict) -> None:
        if record["step"] == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, corpus, tmp_path / "a", on_record=stop)
    path = tmp_path / "a" / "numerics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "edited": [lines[0], lines[1].replace(b'"rms":', b'"rms":1'), *lines[2:]],
        "lost": [lines[0], *lines[2:]],
        "moved": [lines[0], lines[2], lines[1], *lines[3:]],
        "without": [lines[0], lines[1].partition(b', "crc"')[0] + b"}\n", *lines[2:]],
    }[damage]
    path.write_bytes(b"".join(changed))
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(CheckpointError, match=r"numerics\.jsonl is damaged in line 2.*checksum"):
        train(config, corpus, tmp_path / "a", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    path.write_bytes(b"".join(lines))
    train(config, corpus, tmp_path / "a", resume=True)
    check_recording(path)


def test_damaged_recording_is_refused_before_anything_changes(tmp_path: Path) -> None:
    corpus = text_corpus(tmp_path)
    config = tiny_config(record_every=2, checkpoint_every=3)

    def stop(record: dict) -> None:
        if record["step"] == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, corpus, tmp_path / "a", on_record=stop)
    path = tmp_path / "a" / "numerics.jsonl"
    lines = path.read_text().splitlines()
    for line in ("[]", "3", "{", "{}", '{"step": "x"}', "[" * 100_000, "\x00"):
        path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
        with pytest.raises(CheckpointError, match=r"numerics\.jsonl is damaged in line 2"):
            train(config, corpus, tmp_path / "a", resume=True)
        assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
