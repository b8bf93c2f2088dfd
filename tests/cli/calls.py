"""A call of the command line within this process."""

import sys
from typing import Any

import pytest

from unitscale.cli import main


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `unitscale ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["unitscale", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0), *capsys.readouterr()
