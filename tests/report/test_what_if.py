"""What other recipes would do, in words and tables; and rows that are damaged or from elsewhere."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from unitscale.report import group, write_html
from unitscale.report.html import pack
from unitscale.report.page import what_if_data
from unitscale.report.what_if import (
    answers_of,
    decibels,
    ranges,
    recipe_rows,
    sentences,
    worst_rows,
)

FULL = {"why": "full precision: skip='x'"}


def numbers(output: float | None, weight: float | None = 0.1) -> dict[str, Any]:
    return {
        "errors": {"output": output, "grad_weight": weight},
        "operands": {"output.input": [20.0, 0.25, 0.0], "output.weight": [None, 0.0, 0.5]},
    }


def row(module: str, step: int = 0, **recipes: Any) -> dict[str, Any]:
    return {
        "what_if": f"{module}.linear",
        "formats": {"E4M3FN": {"max": 448.0, "min_normal": 2.0**-6, "min_subnormal": 2.0**-9}},
        "step": step,
        "op": "linear",
        "module": module,
        "macs": 100,
        "recipes": recipes,
    }


def model_rows() -> list[dict[str, Any]]:
    """Twelve layers of two products; in nvfp4 two down-projections are worse by 6 dB."""
    return [
        row(
            f"layers.{i}.mlp.{name}",
            mxfp8=numbers(0.04),
            nvfp4=numbers(0.2 if name == "down_proj" and i in (10, 11) else 0.1, 0.1),
        )
        for i in range(12)
        for name in ("up_proj", "down_proj")
    ]


def test_verdict_names_layers_and_decibels() -> None:
    # 20 log10(0.2 / 0.1) = 6; 0.04 is 28 dB and the weight's 0.1 20 dB, so both worst are 20.
    assert sentences(model_rows()) == [
        "Of 2 recipes mxfp8 would be the closest to FP32 (the worst result of the median product "
        "has 20 dB) and nvfp4 the furthest (20 dB).",
        "In nvfp4 the output of layers 10 and 11's down_proj would lose 6 dB more than the median "
        "(20 dB).",
        "In mxfp8 no result of 24 products would lose 3 dB more than the median.",
    ]


def test_recipes_that_round_unlike_counts_of_products_have_one_each() -> None:
    rows = [
        row("a", fp8=numbers(0.04), nvfp4=FULL),
        row("b", fp8=numbers(0.04), nvfp4=numbers(0.1)),
    ]
    assert sentences(rows)[1:] == [
        "In fp8 (2 products) and nvfp4 (1 product) no result would lose 3 dB more than the median."
    ]


def test_no_number_is_worse_than_any() -> None:
    rows = [row("a", fp16=numbers(None)), row("b", fp16=numbers(0.001)), row("c", fp16=FULL)]
    assert sentences(rows) == ["In fp16 the output of a would be no number."]
    assert recipe_rows(answers_of(rows))[0]["worst product"] == "a.linear"
    assert [r["fp16"] for r in worst_rows(answers_of(rows))] == ["lost", 20.0, "full"]


def test_recipe_that_rounds_nothing_says_so() -> None:
    assert sentences([row("a", fp32=FULL)]) == [
        "In fp32 no product of this model is rounded (full precision: skip='x')."
    ]


def test_steps_count_by_their_mean_square() -> None:
    assert decibels([0.1, 0.1]) == pytest.approx(20)
    assert decibels([0.0, 0.2]) == pytest.approx(20 - 10 * 0.30103, abs=1e-4)
    assert decibels([0.1, None]) is None
    assert decibels([0.0]) == 150
    (one,) = answers_of([row("a", r=numbers(0.1)), row("a", 5, r=numbers(0.3))])
    assert one.decibels["output"] == pytest.approx(decibels([0.1, 0.3]))
    assert (one.sqnr, one.flushed, one.saturated) == (20.0, 0.25, 0.5)


def test_tables_have_a_column_for_each_recipe() -> None:
    rows = worst_rows(answers_of(model_rows()), 3)
    assert [list(r) for r in rows] == [["product", "mxfp8", "nvfp4"]] * 3
    assert rows[0] == {"product": "layers.10.mlp.down_proj.linear", "mxfp8": 20.0, "nvfp4": 14.0}
    assert recipe_rows(answers_of(model_rows()))[0]["output, dB"] == 28.0


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "3"),
        ([11, 10], "10 and 11"),
        ([0, 1, 2, 3], "0 to 3"),
        ([0, 1, 2, 7], "0 to 2 and 7"),
        ([1, 3, 5, 7, 9], "1, 3, 5 and 2 more"),
    ],
)
def test_layers_are_counted_up(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_recording_keeps_them_apart_from_tensors() -> None:
    tensor = {"step": 0, "name": "x", "op": "add", "direction": "value", "rms": 1.0}
    recording = group([row("a", r=numbers(0.1)), tensor])
    assert [series.name for series in recording.series] == ["x"]
    assert [found["what_if"] for found in recording.what_if] == ["a.linear"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": 3}, "row 1: recipes is 3; expected errors and operands"),
        ({"recipes": {"r": {"errors": {"output": -1}, "operands": {}}}}, "recipes is"),
        ({"recipes": {"r": {"errors": {}, "operands": {"x": [1, 2]}}}}, "recipes is"),
        ({"recipes": {"r": {}}}, "recipes is"),
        ({"module": None}, "module is null; expected a text"),
        ({"step": -1}, "step is -1"),
        ({"macs": "many"}, "macs is 'many'"),
    ],
)
def test_damaged_row_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group([row("a", r=numbers(0.1)) | change])


def test_page_of_many_products_stays_small(tmp_path: Path) -> None:
    """500 products by 8 recipes; their history is thinned, so that more steps add nothing to it."""
    names = [f"r{i}" for i in range(8)]
    draw = random.Random(0).random
    rows = [
        row(f"layers.{i}.up", step, **{name: numbers(draw(), draw()) for name in names})
        for step in range(14)
        for i in range(500)
    ]
    data = what_if_data(rows, 50_000)
    assert len(data["steps"]) == 50_000 // (500 * 8)
    assert (data["steps"][0], data["steps"][-1], data["stepCount"]) == (0, 13, 14)
    packed = pack(json.dumps(data, separators=(",", ":")))
    # Twice the history is 0.1 MB more, and Plotly 2 MB: the whole page is under 5.
    assert len(packed) < 0.6e6


def test_page_has_the_verdict_and_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    tensor = {"step": 0, "name": "x", "op": "add", "direction": "value", "rms": 1.0}
    write_html([tensor, *model_rows()], path)
    page = path.read_text()
    assert "In nvfp4 the output of layers 10 and 11&#x27;s down_proj would lose 6 dB more" in page
    assert "<h2>What other recipes would do</h2>" in page
    data = what_if_data(model_rows(), 1000)
    assert data["recipes"] == ["mxfp8", "nvfp4"]
    at = [name for name, _ in data["products"]].index("layers.11.mlp.down_proj.linear")
    assert data["values"]["output"][at] == [28.0, 14.0]
    assert data["values"]["flushed"][at] == [25.0, 25.0]
    assert data["history"][at] == [[20], [14]]
    assert what_if_data([row("a", r=FULL)], 1000)["whys"] == [["full"]]


def test_page_without_what_if_says_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html([{"step": 0, "name": "x", "op": "add", "direction": "value", "rms": 1.0}], path)
    assert "What other recipes would do" not in path.read_text()


def test_nothing_lost_or_gained_has_no_sign() -> None:
    rows = [row(f"layers.{i}.x", nvfp4=numbers(1.03 if i < 3 else 1.8, 1.03)) for i in range(4)]
    said = " ".join(sentences(rows))  # 20 log10(1.03) = 0.26, and 5 dB more at the last
    assert "(0 dB)" in said
    assert "-0 dB" not in said
    almost = recipe_rows(answers_of([row("x", nvfp4=numbers(1.004, 1.004))]))
    assert str(almost[0]["output, dB"]) == "0.0"


def test_module_that_is_called_by_a_number_has_its_op() -> None:
    rows = [row(f"layers.{i}.0", nvfp4=numbers(0.1)) for i in range(4)]
    rows.append(row("layers.4.0", nvfp4=numbers(0.9)))
    assert "layer 4's linear 0 would lose" in " ".join(sentences(rows))
