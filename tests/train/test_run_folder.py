"""Run folders: files whole or absent, and nobody else's run overwritten."""

import json
import math
from pathlib import Path

import pytest

from unitscale.data import Corpus, open_corpus
from unitscale.train import CheckpointError, TrainConfig
from unitscale.train.lock import InUseError
from unitscale.train.run_folder import (
    claimed,
    read_object,
    write_atomically,
    write_json,
)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "text.txt"
    path.write_bytes(b"some text. " * 1000)
    return open_corpus(path)


def claim_folder(folder: Path, config: TrainConfig, corpus: Corpus, *, resume: bool) -> None:
    """Claim a folder, and let it go."""
    with claimed(folder, config, corpus, resume=resume):
        pass


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_names_the_file(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*x\.json"):
        write_atomically(tmp_path / "x.json", full)


def test_json_has_null_where_a_number_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [1.5, math.inf]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None]}


def test_unreadable_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"x\.json is damaged"):
        read_object(tmp_path / "x.json")


def test_claimed_folder_needs_resume(tmp_path: Path, corpus: Corpus) -> None:
    folder = tmp_path / "a" / "run"
    claim_folder(folder, TrainConfig(), corpus, resume=False)
    before = contents(folder)
    with pytest.raises(FileExistsError, match="run holds a run already"):
        claim_folder(folder, TrainConfig(), corpus, resume=False)
    claim_folder(folder, TrainConfig(), corpus, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("config", "difference"),
    [
        (TrainConfig(steps=7), "its steps is 1000 and not 7"),
        (TrainConfig(model={"width": 64}), "its width is None and not 64"),
    ],
)
def test_folder_of_another_configuration_is_refused(
    tmp_path: Path, corpus: Corpus, config: TrainConfig, difference: str
) -> None:
    claim_folder(tmp_path / "run", TrainConfig(), corpus, resume=False)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=difference):
        claim_folder(tmp_path / "run", config, corpus, resume=True)
    assert contents(tmp_path) == before


def test_folder_of_another_text_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    claim_folder(tmp_path / "run", TrainConfig(), corpus, resume=False)
    (tmp_path / "text.txt").write_bytes(b"other text " * 1000)
    with pytest.raises(ValueError, match="its fingerprint is"):
        claim_folder(
            tmp_path / "run", TrainConfig(), open_corpus(tmp_path / "text.txt"), resume=True
        )


def test_folder_below_a_file_cannot_be_made(tmp_path: Path, corpus: Corpus) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the folder .*file/run: Not a directory"):
        claim_folder(tmp_path / "file" / "run", TrainConfig(), corpus, resume=False)


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '"x"', "[" * 100_000, "{" * 100_000, "{", "", "\x00\x01"]
)
def test_json_of_another_shape_is_damage(content: str, tmp_path: Path, corpus: Corpus) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        claim_folder(tmp_path, TrainConfig(), corpus, resume=True)


@pytest.mark.parametrize("value", [3, [], None, "x"])
def test_description_of_another_shape_is_another_run(
    value: object, tmp_path: Path, corpus: Corpus
) -> None:
    claim_folder(tmp_path, TrainConfig(), corpus, resume=False)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"config": value}))
    with pytest.raises(ValueError, match="holds another run: its config is"):
        claim_folder(tmp_path, TrainConfig(), corpus, resume=True)


def test_unknown_key_is_another_run(tmp_path: Path, corpus: Corpus) -> None:
    claim_folder(tmp_path, TrainConfig(), corpus, resume=False)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"clip_norm": null', '"clip_nrom": null'))
    with pytest.raises(ValueError, match="it has a 'clip_nrom', which is unknown"):
        claim_folder(tmp_path, TrainConfig(), corpus, resume=True)


def test_run_of_an_earlier_version_is_named(tmp_path: Path, corpus: Corpus) -> None:
    claim_folder(tmp_path, TrainConfig(), corpus, resume=False)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["version"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"of version 1, these of 2.*choose another folder$"):
        claim_folder(tmp_path, TrainConfig(), corpus, resume=True)


@pytest.mark.parametrize(
    "name", ["checkpoint.safetensors", "log.jsonl", "result.json", "numerics.jsonl"]
)
@pytest.mark.parametrize("resume", [False, True])
def test_run_without_its_configuration_is_refused(
    name: str, resume: bool, tmp_path: Path, corpus: Corpus
) -> None:
    (tmp_path / name).write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"holds {name} of a run, and not the config"):
        claim_folder(tmp_path, TrainConfig(), corpus, resume=resume)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["results.json", "runs"])
def test_folder_of_a_comparison_is_no_place_for_a_run(
    name: str, tmp_path: Path, corpus: Corpus
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"holds a comparison .{name} exists"):
        claim_folder(tmp_path, TrainConfig(), corpus, resume=True)


def test_claimed_folder_is_in_use(tmp_path: Path, corpus: Corpus) -> None:
    with claimed(tmp_path / "run", TrainConfig(), corpus, resume=False):
        before = contents(tmp_path)
        with pytest.raises(InUseError, match="run is in use by another process"):
            claim_folder(tmp_path / "run", TrainConfig(), corpus, resume=True)
        assert contents(tmp_path) == before
    claim_folder(tmp_path / "run", TrainConfig(), corpus, resume=True)
