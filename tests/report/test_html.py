"""report.html: one file, with nothing to fetch and nothing unescaped."""

import base64
import errno
import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from report.sample import RESULTS, recording_rows
from unitscale.report import Curve, group, write_html


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def embedded(page: str, name: str) -> str:
    """The text that the page unpacks."""
    (packed,) = re.findall(rf'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    return gzip.decompress(base64.b64decode(packed)).decode()


def cells(page: str, part: str) -> list[str]:
    """The first three cells of the first line of a table that holds a text."""
    line = next(line for line in page.splitlines() if line.startswith("<tr") and part in line)
    return re.findall(r"<td[^>]*>([^<]*)</td>", line)[:3]


@pytest.fixture
def page(tmp_path: Path) -> str:
    rows = recording_rows(fault_at=100, layer=2, steps=range(0, 200, 50))
    curve = Curve(recipe="fp8", losses=[3.0, 2.0, 1.0], diverged=False, unit_scaled=True)
    write_html(
        rows,
        tmp_path / "report.html",
        curves=[curve],
        results=RESULTS,
        products={"fp8": [("output", "E4M3FN", "E4M3FN", "as is")]},
        configuration={"x": "<1>"},
    )
    return read(tmp_path / "report.html")


def test_first_paragraph_names_the_fault(page: str) -> None:
    (first, *_) = re.findall(r"<p>(.*?)</p>", page)
    assert "At step 100 the gradients of layers.2 fell by 2^20" in first
    assert "layers.1" not in first


def test_page_holds_tables_products_and_configuration(page: str) -> None:
    assert cells(page, "+0.150") == ["fp8", "1.650 ± 0.778", "+0.150 ± 0.071"]
    assert cells(page, "output") == ["fp8", "output", "E4M3FN"]
    assert "&quot;x&quot;: &quot;&lt;1&gt;&quot;" in page
    assert cells(page, "layers.2.linear (") == ["layers.2.linear (gradient)", "E5M2", "100 %"]


def test_diverged_rows_are_marked(page: str) -> None:
    rows = re.findall(r"<tr class='(\w+)'><td class='text'>([\w-]+)<", page)
    assert rows == [("finished", "fp32"), ("finished", "fp8"), ("diverged", "fp8-none")]


def test_page_fetches_nothing_and_escapes_names(page: str) -> None:
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "default-src 'none'" in page
    assert "a&lt;b&gt;.txt" in page
    assert "a<b>" not in page


def test_data_are_those_of_the_rows(page: str) -> None:
    data = json.loads(embedded(page, "data"))
    (recording,) = data["recordings"]
    assert recording["steps"] == [0, 50, 100, 150]
    at = recording["tensors"].index(["layers.2.linear", "linear", "gradient"])
    assert recording["rms"][at] == [-10.0, -10.0, -30.0, -30.0]
    assert recording["shares"]["E5M2"]["flushed"][at] == [0.0, 0.0, 1.0, 1.0]
    assert recording["histograms"][at][0] == [-12, [1, 2, 3]]
    assert recording["formats"]["E4M3FN"] == [-9.0, -6.0, 8.8]
    assert data["curves"][0]["losses"][-1] == pytest.approx(1.0, abs=1.0)


def test_comparison_says_first_how_it_ended(tmp_path: Path) -> None:
    recordings = [group(recording_rows(steps=[0]), label=label) for label in ("fp8", "fp32")]
    write_html(recordings, tmp_path / "report.html", results=RESULTS)
    (first, *_) = re.findall(r"<p>(.*?)</p>", read(tmp_path / "report.html"))
    assert first == (
        "fp32 ends at a validation loss of 1.500 ± 0.707. "
        "Against it: fp8 +0.150 ± 0.071, fp8-none +1.000. What the format and what the "
        "parametrization of fp8 does is not known without a run of fp32-units. fp8-none diverged "
        "in 1 of 2 runs."
    )


def test_loss_that_is_no_number_is_named_with_its_step(tmp_path: Path) -> None:
    def first(losses: list[float]) -> str:
        curve = Curve(recipe="fp8-none", losses=losses, diverged=True, unit_scaled=False)
        other = replace(curve, losses=[1.0, *losses])
        write_html(recording_rows(steps=[0]), tmp_path / "report.html", curves=[curve, other])
        return " ".join(re.findall(r"<p>(.*?)</p>", read(tmp_path / "report.html")))

    sentence = "The training loss of fp8-none is no number at step 3 and 4 (2 runs)."
    assert sentence in first([3.0, 2.0, math.nan, math.inf])
    assert "is no number" not in first([3.0, 2.0, 1.0])


def test_page_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_html([], path, title="old")
    before = path.read_bytes()

    def full(self: Path, text: str, **options: Any) -> int:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_html([], path, title="new")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_name_that_is_not_utf_8_is_written_as_an_escape(tmp_path: Path) -> None:
    results = RESULTS | {"data": "caf\udce9.txt"}
    write_html([], tmp_path / "report.html", results=results, configuration=results)
    assert "caf\\udce9.txt" in read(tmp_path / "report.html")


def test_folder_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a folder; expected the name of a file"):
        write_html([], tmp_path)


def test_gradients_are_in_the_order_of_the_values(tmp_path: Path) -> None:
    header, *rows = recording_rows(steps=[0], layers=2)
    values = [row for row in rows if row["direction"] == "value"]
    gradients = [row for row in rows if row["direction"] == "gradient"]
    found = group([header, *values, *reversed(gradients)]).series
    names = ["layers.0.linear", "layers.0.add", "layers.1.linear", "layers.1.add"]
    assert [s.name for s in found] == names * 2
    assert [s.direction for s in found] == ["value"] * 4 + ["gradient"] * 4


def test_more_tables_have_their_keys_as_heads_and_numbers_to_the_right(tmp_path: Path) -> None:
    tables = {"Left": [{"why": "written <to>", "tensors": 3}], "None": []}
    write_html([], tmp_path / "report.html", tables=tables, subtitle="a & b")
    page = read(tmp_path / "report.html")
    assert "<h2>Left</h2>" in page
    assert "<h2>None</h2>" not in page
    assert "<td class='text'>written &lt;to&gt;</td><td class='number'>3</td>" in page
    assert "<p class='note'>a &amp; b</p>" in page


def test_page_knows_what_is_rounded(tmp_path: Path) -> None:
    for recipe in ("fp8", "fp32"):
        recording = group(recording_rows(steps=[0], layers=1), recipe=recipe)
        write_html([recording], tmp_path / "report.html")
        (found,) = json.loads(embedded(read(tmp_path / "report.html"), "data"))["recordings"]
        pairs = zip(found["tensors"], found["operands"], strict=True)
        marked = [f"{name} {direction}" for (name, _, direction), is_marked in pairs if is_marked]
        expected = ["layers.0.linear value", "layers.0.add value", "layers.0.linear gradient"]
        assert marked == (expected if recipe == "fp8" else [])


def test_plotly_is_inside(page: str) -> None:
    assert "plotly.js" in embedded(page, "plotly")[:200]


def test_nothing_recorded_needs_no_plotly(tmp_path: Path) -> None:
    write_html([], tmp_path / "report.html", results=RESULTS)
    assert len(read(tmp_path / "report.html")) < 40_000


def test_rows_of_units_say_before_and_after(tmp_path: Path) -> None:
    unit: dict[str, Any] = {"op": "linear", "amax": None, "grad_amax": None, "phi": 2.0**9}
    rows = [
        SimpleNamespace(name=f"layers.{i}", s=2.0**-5, rms=2.0**-5, grad_rms=2.0**-9, **unit)
        for i in range(3)
    ]
    write_html(rows, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    assert "0 of 6 tensors have an RMS between 1/2 and 2" in page
    assert "and 6 as they are held at their units" in page


def test_row_of_no_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a row is a int"):
        write_html([1], tmp_path / "report.html")


def test_several_recordings_are_named(tmp_path: Path) -> None:
    recordings = [group(recording_rows(steps=[0]), label=label) for label in ("fp8", "fp8-none")]
    write_html(recordings, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    assert "<b>fp8-none</b>: None of 8 operands loses" in page
    labels = [r["label"] for r in json.loads(embedded(page, "data"))["recordings"]]
    assert labels == ["fp8", "fp8-none"]


@pytest.mark.slow
def test_500_tensors_at_200_steps_stay_under_5_megabytes(tmp_path: Path) -> None:
    rows = recording_rows(layers=125, steps=range(0, 10_000, 50), noise=True)
    write_html(rows, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    (recording,) = json.loads(embedded(page, "data"))["recordings"]
    assert (len(recording["tensors"]), len(recording["steps"])) == (500, 200)
    assert len(page.encode()) < 5_000_000


@pytest.mark.slow
def test_more_steps_are_thinned_and_the_fault_stays(tmp_path: Path) -> None:
    rows = recording_rows(layers=125, steps=range(900), fault_at=413, layer=3)
    write_html(rows, tmp_path / "report.html")
    (recording,) = json.loads(embedded(read(tmp_path / "report.html"), "data"))["recordings"]
    assert {0, 413, 899} <= set(recording["steps"])
    assert len(recording["steps"]) <= 221
