"""What-if: it says what recipes really do, it never says nothing, and it leaves the run alone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitscale import units
from unitscale.recipes import RECIPES, RIVALS, Recipe, Rule, uniform
from unitscale.record import record, suggest_skip

RECIPE_NAMES = ["fp8", "fp8-current", "mxfp8", "nvfp4"]


class Mlp(nn.Module):
    """Two linear layers with an outlier feature, and dropout between them."""

    def __init__(self, width: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = dropout
        self.up.weight.data[3] *= 40

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(F.gelu(self.up(x)), self.dropout, self.training)
        return self.down(y).square().mean()


def inputs(rows: int = 64, width: int = 48) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(2))


def what_ifs(
    model: nn.Module, recipes: Any, *args: Any, steps: int = 1, **options: Any
) -> list[dict[str, Any]]:
    """The what-if rows of some steps."""
    with record(model, every=1, what_if=recipes, **options) as recorder:
        for _ in range(steps):
            model(*args).backward()
    return [row for row in recorder.rows if "what_if" in row]


def test_a_row_for_every_product_and_every_recipe() -> None:
    rows = what_ifs(Mlp(), RECIPE_NAMES, inputs(), steps=2)
    assert [(row["step"], row["what_if"]) for row in rows] == [
        *((0, "down.linear"), (0, "up.linear"), (1, "down.linear"), (1, "up.linear"))
    ]
    up = rows[1]
    assert (up["op"], up["module"], up["macs"]) == ("linear", "up", 64 * 48 * 96)
    assert list(up["recipes"]) == RECIPE_NAMES
    for found in up["recipes"].values():
        # The input takes no gradient, so that nobody computes its product.
        assert list(found["errors"]) == ["output", "grad_weight"]
        assert all(0.01 < error < 0.3 for error in found["errors"].values())
    down = rows[0]["recipes"]["fp8"]
    assert list(down["errors"]) == ["output", "grad_input", "grad_weight"]
    assert list(down["operands"]) == [
        *("output.input", "output.weight", "grad_input.grad_output", "grad_input.weight"),
        *("grad_weight.grad_output", "grad_weight.input"),
    ]
    # E4M3FN and E5M2 on data near their middle: 31.5 and 25.6 dB for a Gaussian (style page); this
    # is no Gaussian, so within 2 dB.
    assert down["operands"]["output.weight"][0] == pytest.approx(31.5, abs=2)
    assert down["operands"]["grad_input.grad_output"][0] == pytest.approx(25.6, abs=2)


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (["fp8", "fp9"], r"unknown recipe 'fp9'; the recipes are fp32, .* Did you mean 'fp8'\?"),
        ("fp8,mxpf8", "unknown recipe 'mxpf8'.*Did you mean 'mxfp8'"),
        (["fp8", "fp8"], "what_if names 'fp8' twice"),
        ([""], "unknown recipe ''"),
    ],
)
def test_unknown_recipe_is_one_error_and_nothing_is_touched(
    recipes: Any, message: str, tmp_path: Path
) -> None:
    model, path = Mlp(), tmp_path / "numerics.jsonl"
    with (
        pytest.raises(ValueError, match=message) as caught,
        record(model, what_if=recipes, path=path),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert not path.exists()
    assert model._compiled_call_impl is None


def test_all_is_every_recipe_that_rounds() -> None:
    (row, *_) = what_ifs(Mlp(), "all", inputs())
    assert list(row["recipes"]) == [r.name for r in RECIPES.values() if r.rounds]
    assert all("errors" in found for found in row["recipes"].values())


def test_groups_are_taken_in_a_list_beside_names() -> None:
    (row, *_) = what_ifs(Mlp(), ["rivals", "fp8", "fp8-none"], inputs())
    rivals = [name for name in RIVALS if RECIPES[name].rounds]
    assert set(row["recipes"]) == {*rivals, "fp8-none"}


def test_rows_of_a_file_are_read_from_it(tmp_path: Path) -> None:
    for path in (None, tmp_path / "w.jsonl"):
        with record(Mlp(), what_if=["nvfp4"], path=path) as recorder:
            pass
        assert recorder.rows == []
        model = Mlp()
        with record(model, what_if=["nvfp4"], path=path) as recorder:
            model(inputs()).backward()
            recorder.collect()
            assert len(recorder.rows) > 2
        assert suggest_skip(recorder.rows, "nvfp4", budget=1)


def test_rows_of_a_parquet_file_are_not_silently_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with record(Mlp(), path=tmp_path / "w.parquet") as recorder:
        pass
    with pytest.raises(ValueError, match=r"w\.parquet and not in memory; read them after"):
        print(recorder.rows)


def test_model_without_products_is_said() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.gain * x).sum()

    with pytest.warns(UserWarning, match="no product of this Scale was seen at step 0.*fp8"):
        assert what_ifs(Scale(), ["fp8"], torch.ones(3, 4)) == []


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).square().mean()


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("fp32", "recipe 'fp32' rounds none of the 1 product .* recipe fp32 rounds nothing"),
        ("mxfp8", "recipe 'mxfp8' rounds none .* no rule for convolution products"),
    ],
)
def test_recipe_that_rounds_nothing_here_is_said(recipe: str, why: str) -> None:
    with pytest.warns(UserWarning, match=why):
        (row,) = what_ifs(Convolution(), ["fp8", recipe], torch.randn(2, 4, 16))
    assert row["recipes"][recipe].keys() == {"why"}
    assert row["recipes"][recipe]["why"].startswith("full precision: ")
    assert row["recipes"]["fp8"]["errors"]["output"] > 0.01


def test_own_rules_and_skip_decide() -> None:
    mine = Recipe(
        name="mine",
        rules=(Rule(path="down", gemm=None), *uniform(RECIPES["fp8"].value.format, None)),
    )
    down, up = what_ifs(Mlp(), [mine], inputs())
    assert "keeps linear products in full precision" in down["recipes"]["mine"]["why"]
    assert list(up["recipes"]["mine"]["operands"]) == [
        *("output.input", "output.weight", "grad_weight.input")
    ]


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_run_is_left_as_it_was(name: str) -> None:
    found = []
    for what_if in ((), [name]):
        model = Mlp(dropout=0.5)
        torch.manual_seed(5)
        with record(model, every=1, what_if=what_if):
            losses = []
            for _ in range(2):
                loss = model(inputs())
                loss.backward()
                losses.append(loss.item())
        found.append((losses, [p.grad for p in model.parameters()], torch.rand(1)))
    (losses, grads, draw), (others, more, drawn) = found
    assert losses == others
    assert all(map(torch.equal, grads, more))
    assert torch.equal(draw, drawn)


def test_units_and_recipe_of_the_run_change_no_number() -> None:
    """The true values are looked at: those of a run that rounds nothing are the same at units."""
    plain = what_ifs(Mlp(), RECIPE_NAMES, inputs())
    held = what_ifs(units.unit_scale(Mlp(), "fp32-units", inner="eager"), RECIPE_NAMES, inputs())
    assert plain == held
    rounded = what_ifs(units.unit_scale(Mlp(), "fp8", inner="eager"), RECIPE_NAMES, inputs())
    assert plain != rounded


def test_delayed_scale_is_that_of_the_step_before() -> None:
    """A tensor that grows by 64 saturates at the scale of before; the first step has its own."""
    with record(Mlp(), every=1, what_if=["fp8-delayed", "fp8-current"]) as recorder:
        for factor in (1.0, 64.0, 64.0):
            recorder.model(inputs() * factor).backward()
    rows = [row for row in recorder.rows if row.get("what_if") == "up.linear"]
    found = [row["recipes"]["fp8-delayed"]["operands"]["output.input"] for row in rows]
    assert [saturated > 0.3 for *_, saturated in found] == [False, True, False]
    now = [row["recipes"]["fp8-current"]["operands"]["output.input"][2] for row in rows]
    assert now == [0, 0, 0]


def test_static_loss_scale_lifts_gradients() -> None:
    model = Mlp()
    with record(model, every=1, what_if=["fp16-none", "fp16-loss"]) as recorder:
        (model(inputs()) * 2.0**-8).backward()
    down, *_ = [row for row in recorder.rows if "what_if" in row]
    none, loss = (down["recipes"][r]["operands"] for r in ("fp16-none", "fp16-loss"))
    key = "grad_input.grad_output"
    assert loss[key][0] > none[key][0] + 10
    assert loss["output.input"] == none["output.input"]


def test_a_large_product_is_compared_in_part_and_says_so() -> None:
    torch.manual_seed(0)
    wide = nn.Linear(300, 520, bias=False)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wide

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).square().mean()

    x = torch.randn(600, 300)
    (row,) = what_ifs(Wide(), ["mxfp8"], x)
    assert row["sampled"] == [1, 256, 256, 256]
    weight = wide.weight
    exact = units.apply_recipe(nn.Sequential(copy.deepcopy(wide)), "mxfp8", inner="eager")(x)
    error = ((exact - x @ weight.T).norm() / (x @ weight.T).norm()).item()
    # 2**16 of 3 * 10**5 elements, the errors of which hang together by row and column.
    assert row["recipes"]["mxfp8"]["errors"]["output"] == pytest.approx(error, rel=0.02)


def test_operand_that_is_written_to_is_not_measured() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4, bias=False)
            self.linear.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.x = x * 2
            y = self.linear(self.x)
            return (x + y).sum()

    model = Written()
    with record(model, every=1, what_if=["fp8"]) as recorder:
        loss = model(torch.ones(3, 4, requires_grad=True))
        with torch.no_grad():
            model.x.add_(1)
        loss.backward()
        with pytest.warns(UserWarning, match="'fp8' was measured in none of the 1 product"):
            recorder.collect()
    (row,) = [row for row in recorder.rows if "what_if" in row]
    assert "was written to" in row["recipes"]["fp8"]["why"]


def test_step_without_a_backward_pass_has_its_forward_half() -> None:
    model = Mlp()
    with record(model, every=1, what_if=["fp8"]) as recorder:
        model(inputs())
    rows = [row for row in recorder.rows if "what_if" in row]
    assert [list(row["recipes"]["fp8"]["errors"]) for row in rows] == [["output"]] * 2


def test_second_call_of_a_step_has_rows_of_its_own() -> None:
    model = Mlp()
    with record(model, every=1, what_if=["fp8"]) as recorder:
        (model(inputs()) + model(inputs() * 2)).backward()
    names = {row["what_if"] for row in recorder.rows if "what_if" in row}
    assert names == {"up.linear", "down.linear", "up.linear@2", "down.linear@2"}


def test_rows_in_a_file_and_after_a_resumption(tmp_path: Path) -> None:
    path, model = tmp_path / "numerics.jsonl", Mlp()
    for first, steps in ((0, 3), (2, 2)):
        with record(model, every=1, path=path, what_if=["fp8"], first_step=first):
            for _ in range(steps):
                model(inputs()).backward()
    header, *rows = map(json.loads, path.read_text().splitlines())
    found = [(row["step"], row["what_if"]) for row in rows if "what_if" in row]
    assert found == [(step, f"{n}.linear") for step in range(4) for n in ("down", "up")]
    # What a reader of before takes for a line with the formats changes nothing for it.
    assert all(
        "name" not in row and row["formats"] == header["formats"]
        for row in rows
        if "what_if" in row
    )


def test_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "numerics.parquet"
    with (
        pytest.raises(ValueError, match="is a Parquet file, which has no place for what_if"),
        record(Mlp(), path=path, what_if=["fp8"]),
    ):
        pass
    assert not path.exists()
