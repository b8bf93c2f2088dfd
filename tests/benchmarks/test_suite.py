"""The suite of benchmarks: what it makes of scripts that work, fail and take too long.

No figure is looked at: what is tested is that there are rows, and what becomes of them.
"""

import json
import subprocess
import sys
from datetime import date

import paired
import pytest
import suite
import torch

ROW = paired.Row(case="a", measure="of copy", median=0.5, low=0.4, high=0.625, rounds=7)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder of scripts in place of the benchmarks."""
    monkeypatch.setattr(suite, "HERE", tmp_path)
    data = {"title": "T", "machine": "M", "rows": [vars(ROW)]}
    good = f"import pathlib, sys\npathlib.Path(sys.argv[-1]).write_text({json.dumps(data)!r})"
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(suite, "SCRIPTS", {name: [f"{name}.py"] for name in ("good", "bad")})
    return tmp_path


def test_every_script_exists():
    for command in suite.SCRIPTS.values():
        assert (suite.HERE / command[0]).is_file()


def test_page_holds_every_section_and_a_failure_fails(scripts):
    page = scripts / "RESULTS.md"
    assert suite.main(["good", "--out", str(page)]) == 0
    today = date.today().isoformat()
    assert f"## good\n\nT. `python benchmarks/good.py`, {today}\n\nM\n" in page.read_text()
    assert "| a | 0.50 of copy | 0.40 to 0.62, n=7 | - |  |" in page.read_text()
    assert suite.main(["--out", str(page)]) == 1
    assert "## good" in page.read_text()
    assert "## bad\n\n`python benchmarks/bad.py`\n\nFailed with exit code 3." in page.read_text()


def test_sections_that_are_not_asked_for_stay(scripts):
    page = scripts / "RESULTS.md"
    page.write_text(suite.HEAD + "\n## bad\n\nof old\n\n| a |\n\n## gone\n\nno such script\n")
    assert suite.main(["good", "--out", str(page)]) == 0
    good, bad = page.read_text().removeprefix(suite.HEAD).split("\n## ")[1:]
    assert good.startswith("good\n\nT. ")
    assert bad == "bad\n\nof old\n\n| a |\n"


def test_a_script_over_the_budget_is_stopped(scripts):
    section, succeeded = suite.run(["slow.py"], 0.5)
    assert not succeeded
    assert "Stopped after" in section


def test_unknown_names_are_refused(scripts, capsys):
    with pytest.raises(SystemExit) as exit_:
        suite.main(["goood"])
    assert exit_.value.code == 2
    assert "unknown benchmark goood; known: good, bad" in capsys.readouterr().err


def test_a_case_is_compared_in_turns(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ticks = iter(range(0, 10**9, 8))
    monkeypatch.setattr(paired.time, "perf_counter", lambda: next(ticks) / 1024)
    calls = []
    rows = paired.compare(
        lambda: calls.append("r"),
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        "of r",
        rounds=3,
        notes={"b": "note"},
    )
    assert calls == [*"aabbr", *"rarb" * 3]  # warm-up and one call timed, then turns
    assert [(row.case, row.median, row.rounds, row.note) for row in rows] == [
        ("a", 1.0, 3, ""),
        ("b", 1.0, 3, "note"),
    ]


def test_an_absent_peer_has_a_row_and_no_figure():
    row = paired.Row(case="p", measure="of copy", note="absent")
    assert row.cells() == ["p", "-", "-", "-", "absent"]


def test_rounding_finds_a_difference_and_none():
    import rounding

    from unitscale.formats import E4M3FN, E5M2, round_to

    x = torch.tensor([1.04, -0.0, 1000.0, 2.0**-11])
    assert rounding.differ(round_to(x, E4M3FN), rounding.by_ml_dtypes(x, E4M3FN)) == "0 differ"
    assert rounding.differ(round_to(x, E5M2), rounding.by_ml_dtypes(x, E4M3FN)) == "2 differ"
    hard = rounding.hard_inputs()
    assert hard.numel() == 2**22
    assert hard.isfinite().all()


def test_help_of_the_script_names_its_options():
    script = suite.HERE / "rounding.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--quick", "--threads", "--json"))
