"""`make gpu` without a GPU: every line of it that a CPU can run, and a table."""

import json
from pathlib import Path

import gpu_linear
import gpu_llama
import gpu_table
import pytest
import torch


def test_quick_run_on_a_cpu_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        gpu_table, "TESTS", ("tests/gpu/test_device.py::test_units_alone_change_no_bit_of_a_step",)
    )
    monkeypatch.setattr(gpu_linear, "INNER", gpu_linear.INNER)  # put back after the test
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    table, rows = tmp_path / "gpu.md", tmp_path / "gpu.json"
    options = ["--device", "cpu", "--quick", "--table", str(table), "--json", str(rows)]
    assert gpu_table.main(options) == 0
    found = {row["case"]: row for row in json.loads(rows.read_text())["rows"]}
    assert "1 passed" in found["tests of cpu"]["note"]
    for case in ("bf16 again, 32", "units, 32", "Llama, bf16", "Llama, fp8"):
        assert found[case]["median"] > 0, case
    for case in ("torchao tensorwise, 32", "Llama, torchao"):
        assert found[case]["median"] or found[case]["note"] == "torchao not installed"
    text = table.read_text()
    assert all(f"| {case} |" in text for case in found)
    assert text.strip().splitlines()[-1] in capsys.readouterr().out


def test_a_failed_test_is_shown_and_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "test_bad.py"
    path.write_text("def test_cpu():\n    assert False\n")
    monkeypatch.setattr(gpu_table, "TESTS", (str(path),))
    row = gpu_table.test_row("cpu")
    assert row.measure == "FAILED"
    assert "1 failed" in row.note


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--device", "cpu"], "add --quick"), (["--device", "tpu"], "expected cpu, cuda")],
)
def test_what_cannot_run_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_table.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_full_llama_has_about_100_million_parameters() -> None:
    full = gpu_llama.FULL
    layers = full.depth * (4 + 3 * 3) * full.width**2
    assert layers + 2 * 256 * full.width == pytest.approx(100e6, rel=0.02)
    assert full.steps == 200
