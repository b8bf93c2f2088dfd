"""JSON of the wrong shape, in every file that a report reads: one line, and never a traceback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.sample import RUNS, recording_rows
from unitscale.report import write_report
from unitscale.report.folder import find_recordings
from unitscale.report.shape import NUMBER, ROW, TEXT, check, is_histogram, is_integer, is_number

WRONG: list[Any] = [None, True, -1, 1.5, "x", [], [1], {}, {"x": 1}, 10**400, [[[]]]]
BRACKETS = "[" * 100_000
CONFIG = {"config": {"recipe": "fp8", "model": {}, "steps": 9}, "data": "text"}


def assert_one_line(folder: Path, *, may_pass: bool) -> None:
    """Reading a folder either works or raises one line that names the folder's file."""
    said = None
    try:
        write_report(folder)
    except ValueError as error:
        said = str(error)
    if said is None:
        assert may_pass, "this was read as if nothing were wrong"
        return
    assert str(folder) in said
    assert len(said.splitlines()) == 1
    assert len(said) < 1000 + len(str(folder))


def test_assert_one_line_sees_a_file_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_one_line(tmp_path, may_pass=True)
    with pytest.raises(AssertionError, match="as if nothing were wrong"):
        assert_one_line(tmp_path, may_pass=False)


def without_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read everything, and write no page: it is the reading that is tried a thousand times."""
    monkeypatch.setattr("unitscale.report.folder.write_html", lambda *args, **options: None)


def changed(value: Any, depth: int = 4) -> Iterator[Any]:
    """The value with each part of it taken out, or replaced by something of another kind."""
    yield from WRONG
    if depth and isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: part} for part in changed(value[key], depth - 1))
    elif depth and isinstance(value, list) and value:
        yield from ([part, *value[1:]] for part in changed(value[0], depth - 1))


FILES: dict[str, Any] = {
    "results.json": {"data": "x", "model": "attention", "steps": 2, "runs": RUNS[:1]},
    "config.json": CONFIG,
    "result.json": RUNS[1],
    "log.jsonl": {"step": 1, "loss": 3.0},
    "numerics.jsonl": recording_rows(steps=[0])[1],
}


@pytest.mark.parametrize("name", FILES)
def test_any_part_of_any_file_may_be_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without_page(monkeypatch)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    is_lines = name.endswith("l")
    for count, value in enumerate(changed(FILES[name])):
        (tmp_path / name).write_text(json.dumps(value) + "\n" * is_lines)
        # What stands where nothing is read, or is absent and need not be there, may pass.
        assert_one_line(tmp_path, may_pass=count >= len(WRONG))


@pytest.mark.parametrize("text", [BRACKETS, "{", "", "\udcff", "1" * 5000, "nul", '{"a": 1}}'])
@pytest.mark.parametrize("name", FILES)
def test_text_that_is_no_json_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")
    assert_one_line(tmp_path, may_pass=False)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("row", [*WRONG, {"formats": {}}, {"formats": {"E5M2": {"max": 1}}}])
def test_recording_of_another_shape_has_no_figure(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "numerics.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"numerics\.jsonl") as caught:
        find_recordings(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_error_names_line_key_value_and_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "numerics.jsonl"
    header, first, second = recording_rows(steps=[0])[:3]
    lines = [header, first, second | {"rms": "large"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="rms is 'large'; expected a number") as caught:
        find_recordings(path)
    assert str(caught.value).startswith(f"{path}: line 3: ")


def test_checks_say_what_is_missing_and_what_is_wrong() -> None:
    fields = {"a": TEXT, "b": NUMBER}
    check({"a": "x", "b": None, "c": []}, fields, "file")
    with pytest.raises(ValueError, match=r"^file is \[1\]; expected an object$"):
        check([1], fields, "file")
    with pytest.raises(ValueError, match=r"^file has no 'b'; expected a number or null$"):
        check({"a": "x"}, fields, "file")
    with pytest.raises(ValueError, match=r"^file: b is true; expected a number or null$"):
        check({"a": "x", "b": True}, fields, "file")


def test_numbers_are_finite_and_integers_in_range() -> None:
    assert [is_number(x) for x in (1, 1.5, True, "1", float("nan"), 10**400, None)] == [
        *(True, True),
        *(False,) * 5,
    ]
    assert [is_integer(x) for x in (0, 2.0, -1, 1.5, 2**60)] == [True, True, False, False, False]


def test_histogram_that_would_fill_the_memory_is_none() -> None:
    assert is_histogram([-12, [1, 2]])
    assert is_histogram([0, []])
    for wrong in ([-(10**9), [1]], [0, [0, 0]], [0, [-1]], [0], [0.5, [1]], [0, [1] * 10_000]):
        assert not is_histogram(wrong)


def test_every_row_of_a_recording_passes() -> None:
    for row in recording_rows(steps=[0, 50], fault_at=50, noise=True)[1:]:
        check(row, ROW, "row")
