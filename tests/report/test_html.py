"""report.html: one file, with nothing to fetch and nothing unescaped."""

import base64
import re
from pathlib import Path

import pytest

from report.sample import RESULTS
from unitscale.report import write_comparison


@pytest.fixture
def page(tmp_path: Path) -> str:
    (tmp_path / "loss.png").write_bytes(b"a picture")
    write_comparison(RESULTS, tmp_path / "loss.png", tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_page_holds_table_plot_and_configuration(page: str) -> None:
    assert "<td>+0.150 ± 0.071</td>" in page
    assert base64.b64encode(b"a picture").decode() in page
    assert "&quot;x&quot;: 1" in page


def test_diverged_rows_are_marked(page: str) -> None:
    rows = re.findall(r"<tr class='(\w+)'><td>([\w-]+)<", page)
    assert rows == [("finished", "fp32"), ("finished", "fp8"), ("diverged", "fp8-none")]


def test_page_fetches_nothing_and_escapes_names(page: str) -> None:
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "a&lt;b&gt;.txt" in page
    assert "a<b>" not in page
