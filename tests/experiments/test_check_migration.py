"""The comparison with unit-scaling: what it calls equal, and its tables in docs/migrate.md."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import check_migration
from migration_decoder import Decoder, decoder, our_names, rates
from migration_operations import Case, Ratio, compare, operations, ratio
from unitscale.optim import param_groups

PAGE = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text()


def test_a_factor_is_told_from_a_difference() -> None:
    x = torch.randn(100)
    assert ratio(x, x).is_equal
    assert str(ratio(3 * x, x)) == "3.0000"
    assert ratio(3 * x, x).is_scaled
    assert not ratio(3 * x, x).is_equal
    assert not ratio(x + 0.1, x).is_scaled
    assert not ratio(x, torch.zeros(100)).is_scaled
    assert str(ratio(x * (1 + 1e-4 * torch.randn(100)), x)).startswith("differs")


def case(reason: str, factor: float) -> Case:
    return Case(
        name="f",
        theirs=lambda x: x.sin(),
        ours=lambda x: factor * x.sin(),
        inputs={"x": torch.randn(8, dtype=torch.float64)},
        reason=reason,
    )


@pytest.mark.parametrize(
    ("reason", "factor", "expected"),
    [("", 1.0, True), ("", 1.1, False), ("fitted", 1.1, True), ("fitted", 1.0, False)],
)
def test_a_row_is_expected_if_its_reason_and_its_result_agree(reason, factor, expected) -> None:
    assert compare(case(reason, factor)).is_expected is expected


def test_a_gradient_counts_as_much_as_the_output() -> None:
    row = compare(
        Case(
            name="f",
            theirs=lambda x: x.sin(),
            ours=lambda x: x.sin() * 1 if x.grad_fn else (x * 2 - x.detach()).sin(),
            inputs={"x": torch.randn(8, dtype=torch.float64)},
        )
    )
    assert row.output.is_equal
    assert row.grads["x"].factor == pytest.approx(2.0)
    assert not row.is_expected


def test_every_parameter_of_ours_is_loaded_from_theirs() -> None:
    layer = ("mhsa.linear_qkv", "mhsa.linear_o", "mlp.linear_1", "mlp.linear_gate", "mlp.linear_2")
    theirs = ["embedding.weight", "projection.weight"]
    theirs += [f"layers.{index}.{name}.weight" for index in range(2) for name in layer]
    found = [own for name in theirs for own in our_names(name)]
    assert sorted(found) == sorted(name for name, _ in Decoder(16, 8, 2, 2).named_parameters())


def test_the_number_of_layers_gives_their_rates() -> None:
    """What the page advises: 1/sqrt(3) of 1/sqrt(64), where 6 branches give 1/sqrt(6) of it."""
    model = Decoder(64, 8, 3, 2)
    for branches, depth in ((None, 6), (3, 3)):
        model.decoder.layers.branches = branches
        groups = param_groups(model, lr=1.0)
        found = {name: group["lr"] for group in groups for name in group["param_names"]}
        (rate,) = {found[name] for name in found if name.endswith("q_proj.weight")}
        assert rate == pytest.approx((64 * depth) ** -0.5)


def test_without_the_library_it_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "unit_scaling", None)
    monkeypatch.setattr("sys.argv", ["check_migration.py"])
    with pytest.raises(SystemExit, match="pip install unit-scaling"):
        check_migration.main()


def test_the_page_has_the_tables_of_a_run() -> None:
    uu = pytest.importorskip("unit_scaling")
    rows = [compare(case) for case in operations(uu.functional)]
    rows += [decoder(uu, same_factors=False), decoder(uu, same_factors=True)]
    assert [row.name for row in rows if not row.is_expected] == []
    assert f"unit-scaling {version('unit-scaling')}" in PAGE
    assert check_migration.table(rows) in PAGE
    assert check_migration.rate_table(rates(uu)) in PAGE
    found = list(check_migration.traps(uu))
    assert [trap.name for trap in found if not trap.holds] == []
    assert check_migration.trap_table(found) in PAGE


def test_recipes_on_the_page_exist() -> None:
    from unitscale.recipes import RECIPES

    named = set(re.findall(r'"((?:fp8|mxfp8|nvfp4|mus)[a-z0-9-]*)"', PAGE))
    assert len(named) > 10
    assert {name for name in named if name not in RECIPES} <= {"fp8-lm"}  # states, not a recipe


def test_ratio_prints_what_the_page_explains() -> None:
    assert str(Ratio(factor=1.0, off=0.0)) == "1"
    assert str(Ratio(factor=0.9, off=0.08)) == "differs (0.08)"
