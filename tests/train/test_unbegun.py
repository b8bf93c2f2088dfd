"""What fails before its first step leaves a folder as it was; what has begun stays."""

from pathlib import Path

import pytest

from unitscale.train.unbegun import has_begun, made_for_this, undone_unless_begun

LOG = "log.jsonl"


def fail_in(folder: Path, **files: str) -> None:
    """Write files (with "__" for "/" in their names), and fail."""
    with made_for_this(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with undone_unless_begun(folder, LOG):
            for name, text in files.items():
                path = folder / (name.replace("__", "/") + ".jsonl")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            raise SystemExit(1)


def test_failure_before_the_first_step_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fail_in(tmp_path / "above" / "out", runs__fp8__log='{"step": 0}\n', runs__fp8__x="")
    assert list(tmp_path.iterdir()) == []


def test_failure_before_the_first_step_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "runs").mkdir()
    with pytest.raises(SystemExit):
        fail_in(tmp_path, runs__fp8__log='{"step": 0}\n')
    assert {path.name for path in tmp_path.rglob("*")} == {"notes.txt", "runs"}


def test_failure_after_a_step_leaves_all(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fail_in(tmp_path / "out", runs__fp8__log='{"step": 1, "loss": 3.0}\n', other="")
    assert has_begun(tmp_path, LOG)
    assert (tmp_path / "out" / "other.jsonl").exists()


def test_success_leaves_all(tmp_path: Path) -> None:
    with made_for_this(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        with undone_unless_begun(tmp_path / "out", LOG):
            (tmp_path / "out" / "a").touch()
    assert (tmp_path / "out" / "a").exists()
