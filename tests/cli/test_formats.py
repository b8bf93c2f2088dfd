"""`unitscale formats`."""

import json
import sys

import pytest

from unitscale.cli import main
from unitscale.formats import E4M3FN, FORMATS


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """What the command prints on stdout."""
    monkeypatch.setattr(sys, "argv", ["unitscale", "formats", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_json_has_every_format(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row["format"]: row for row in json.loads(run(capsys, monkeypatch, "--json"))}
    assert rows.keys() == FORMATS.keys()
    assert rows["E4M3FN"]["max"] == E4M3FN.max == 448
    assert rows["FP16"]["min subnormal"] == 2.0**-24


def test_table_has_every_format(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = run(capsys, monkeypatch)
    for name in FORMATS:
        assert name in table
    assert max(map(len, table.splitlines())) <= 120
