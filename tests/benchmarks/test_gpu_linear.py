"""The linear layer on a GPU: its arithmetic by hand, the page that shows it, a run without one."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import gpu_linear
import pytest
import torch
from gpu_linear import BF16, DYNAMIC, FUSED, UNITS, WAYS, cost
from paired import Row

from house.tree import REPOSITORY

WHOLE = (REPOSITORY / "docs" / "speed.md").read_text()
# Without the section on shapes, whose figures tests/gemm/test_payoff.py checks.
PAGE = re.sub(r"## Can FP8 pay for my shapes\?.*?(?=\n## )", "", WHOLE, flags=re.DOTALL)
CPU = torch.device("cpu")


def test_products_take_their_share_of_the_peak():
    """3 products, 2 n^3 operations each, at 70 % of 989 and 1979 TFLOP/s."""
    assert cost(BF16, 8192).products == pytest.approx(3 * 2 * 8192**3 / (0.7 * 989e12))
    assert cost(UNITS, 8192).products == pytest.approx(2381.10e-6, rel=1e-5)
    assert cost(BF16, 4096).products == pytest.approx(595.576e-6, rel=1e-5)


def test_passes_move_what_they_read_and_write():
    """3 operands of n^2 = 16,777,216 elements at 3.35 TB/s: 2 bytes for amax, 2+1+1 for a cast."""
    found = cost(DYNAMIC, 4096)
    assert found.amax == pytest.approx(3 * 16_777_216 * 2 / 3.35e12)
    assert found.casts == pytest.approx(3 * 16_777_216 * 4 / 3.35e12)
    assert found.launches == pytest.approx(6 * 3e-6)
    assert cost(UNITS, 4096).launches == pytest.approx(3 * 3e-6)


def test_a_total_is_the_sum_of_its_parts():
    parts = gpu_linear.Cost(products=1.0, amax=20.0, casts=300.0, launches=4000.0)
    assert parts.total == 4321.0


def test_ways_differ_in_what_they_leave_out():
    dynamic, units = cost(DYNAMIC, 8192), cost(UNITS, 8192)
    assert dynamic.total - units.total == pytest.approx(dynamic.amax + 3 * gpu_linear.LAUNCH)
    assert units.total - cost(FUSED, 8192).total == pytest.approx(units.casts + units.launches)
    assert cost(BF16, 8192).total == cost(BF16, 8192).products


@pytest.mark.parametrize("size", [1024, 4096, 8192, 16384])
def test_every_step_saves_time(size):
    dynamic, units, fused = (cost(way, size).total for way in (DYNAMIC, UNITS, FUSED))
    assert fused < units < dynamic


def test_smaller_layers_save_more_and_gain_less():
    """Products grow with n^3, passes with n^2."""
    savings = [gpu_linear.saving(size, UNITS) for size in (16384, 8192, 4096, 2048)]
    assert savings == sorted(set(savings))
    gains = [cost(BF16, n).total / cost(DYNAMIC, n).total for n in (2048, 4096, 8192, 16384)]
    assert gains == sorted(set(gains))
    assert all(gain < gpu_linear.FP8_PEAK / gpu_linear.BF16_PEAK for gain in gains)


def test_saving_is_of_the_time_of_dynamic_scaling():
    """2381.10 + 120.20 + 240.39 + 18 = 2759.69 us; without amax and 9 of the 18: 2630.49."""
    assert gpu_linear.saving(8192, DYNAMIC) == 0
    assert gpu_linear.saving(8192, UNITS) == pytest.approx(1 - 2630.49 / 2759.69, rel=1e-4)


def test_table_has_a_row_a_way_with_its_numbers():
    table = gpu_linear.paper_table(8192)
    row = next(line for line in table.splitlines() if line.startswith("| fp8, units |"))
    assert row == "| fp8, units | 2381 | 0 | 240 | 9 | 2630 | 0.55 | 1.00 |"
    assert table.count("\n| ") == 2 + len(WAYS)


def test_page_shows_what_the_script_prints(capsys):
    assert gpu_linear.main(["--paper"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == gpu_linear.paper(gpu_linear.SIZES).strip()
    assert len(printed) > 500
    assert printed in PAGE


def test_page_has_no_figure_that_the_script_does_not_print():
    """Shares, times and ratios; sizes and what has a version are none."""
    figure = (
        r"(?<!torch )(?<!capability )"
        r"\b(?:\d[\d.]*(?= %| us\b| TB/s| TFLOP/s)|\d+\.\d+)\b"
    )
    printed = gpu_linear.paper(gpu_linear.SIZES)
    found = set(re.findall(figure, PAGE))
    assert len(found) > 10
    assert found <= set(re.findall(figure, printed))


def test_page_names_options_and_files_that_exist(capsys):
    with pytest.raises(SystemExit):
        gpu_linear.main(["--help"])
    known = capsys.readouterr().out
    options = set(re.findall(r"--[a-z]+", PAGE))
    assert "--paper" in options
    assert all(option in known for option in options)
    paths = re.findall(r"`((?:benchmarks|src|docs|tests)/[\w./]+)`", WHOLE)
    assert "benchmarks/RESULTS.md" in paths
    assert all((REPOSITORY / path).exists() for path in paths)


def test_without_a_gpu_only_the_arithmetic_is_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "rows.json"
    assert gpu_linear.main(["--sizes", "64", "--json", str(path)]) == 0
    *tables, last = capsys.readouterr().out.strip().split("\n")
    assert "\n".join(tables).strip() == gpu_linear.paper([64]).strip()
    assert last.startswith("Nothing measured: no CUDA device;")
    assert f"{path} is not written" in last
    assert not path.exists()


def test_a_gpu_without_fp8_is_named(monkeypatch, capsys):
    ability = SimpleNamespace(has=False, why="some GPU has compute capability 8.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu_linear, "fp8_products", lambda device: ability)
    assert gpu_linear.main([]) == 0
    assert "Nothing measured: some GPU has compute capability 8.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sizes", "100"], "got 100; expected a multiple of 16"),
        (["--sizes", "0"], "got 0; expected a multiple of 16"),
        (["--paper", "--json", "x"], "--paper measures nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as exit_:
        gpu_linear.main(arguments)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_row_is_of_one_step():
    """1000 ms a call are 100 ms a step of 6 * 4096^3 = 4.12e11 operations: 4.12 TFLOP/s."""
    call = Row(case="units", measure="of x", median=1.5, low=1, high=2, milliseconds=1000.0)
    row = gpu_linear.described(call, 4096, UNITS, 0.002)
    assert (row.case, row.milliseconds) == ("units, 4096", pytest.approx(100.0))
    assert row.note.startswith("4 TFLOP/s; launched in 2.00 ms; on paper 1124 TFLOP/s, 1.62 of")
    assert "paper" not in gpu_linear.described(call, 4096, None, 0.002).note


def test_cases_run_and_units_give_the_plain_layer_in_fp8(monkeypatch):
    """On the CPU, whose `torch._scaled_mm` is software: values and gradients, no speed."""
    monkeypatch.setattr(gpu_linear, "INNER", "eager")
    results = {}
    for name, make in (("plain", gpu_linear.plain), ("units", gpu_linear.at_units)):
        model = make(gpu_linear.linear(64, CPU))
        run = gpu_linear.step(model, 64, CPU)
        run(), run()
        results[name] = model[0].weight.grad
    error = (results["units"] - results["plain"]).norm() / results["plain"].norm()
    # E4M3 against E5M2 on normal values: 0.059 +- 0.006, so neither exact nor broken.
    assert 0.04 < error < 0.08


def test_rows_are_measured_and_an_absent_peer_is_said(monkeypatch):
    monkeypatch.setattr(gpu_linear, "INNER", "eager")
    monkeypatch.setattr(gpu_linear, "find_spec", lambda name: None)
    rows = {row.case: row for row in gpu_linear.measured(32, CPU, 3)}
    assert list(rows) == ["bf16 again, 32", "units, 32"] + [
        f"torchao {name}, 32" for name in ("tensorwise", "rowwise")
    ]
    assert all(rows[name].median > 0 for name in ("bf16 again, 32", "units, 32"))
    assert rows["torchao rowwise, 32"].note == "torchao not installed"


def test_a_call_is_so_many_steps_and_a_wait(monkeypatch):
    seen = []
    monkeypatch.setattr(gpu_linear, "STEPS", 3)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append("wait"))
    cuda = torch.device("cuda", 0)
    gpu_linear.steps(lambda: seen.append("step"), cuda)()
    assert seen == ["step"] * 3 + ["wait"]
    seen.clear()
    gpu_linear.launch_seconds(lambda: seen.append("step"), cuda)
    assert seen == ["wait", *["step"] * 3, "wait"]


def test_another_executor_cannot_take_the_place_of_the_kernel(monkeypatch):
    taken = []
    monkeypatch.setattr(gpu_linear, "unit_scale", lambda m, r, **_: taken.append(r))
    gpu_linear.at_units(torch.nn.Sequential())
    assert taken == [replace(gpu_linear.RECIPES["fp8"], executor="scaled_mm")]


def test_torchao_is_asked_for_the_recipe_of_the_case(monkeypatch):
    """A stand-in for the two names that are used of it, whose calls are looked at."""
    asked = []
    fake = SimpleNamespace(
        Float8LinearConfig=SimpleNamespace(from_recipe_name=lambda name: name),
        convert_to_float8_training=lambda model, *, config: asked.append(config) or model,
    )
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(float8=fake))
    monkeypatch.setitem(sys.modules, "torchao.float8", fake)
    monkeypatch.setattr(gpu_linear, "INNER", "eager")
    models = [make(torch.nn.Sequential()) for make, _ in gpu_linear.PEERS.values()]
    assert asked == ["tensorwise", "rowwise"]
    assert all(model._compiled_call_impl is not None for model in models)
