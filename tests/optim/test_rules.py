import pytest

from unitscale.optim.rules import lr_factor


@pytest.mark.parametrize(
    ("kind", "adam", "constrained_sgd"),
    [
        ("hidden", 64**-0.5, 64**0.5),
        ("input", 64**-0.5, 64**0.5),
        ("output", 1.0, 1.0),
        ("bias", 2**-7, 0.5),
        ("norm", 2**-7, 0.5),
    ],
)
def test_factor_follows_the_table_of_the_paper(kind, adam, constrained_sgd):
    assert lr_factor(kind, 64) == lr_factor(kind, 64, optimizer="adam") == adam
    assert lr_factor(kind, 64, optimizer="sgd") == adam
    constrained = lr_factor(kind, 64, optimizer="sgd", readout_constraint="to_output_scale")
    assert constrained == pytest.approx(constrained_sgd, rel=1e-15)
    assert lr_factor(kind, 64, readout_constraint="to_output_scale") == adam  # Adam never sees it


@pytest.mark.parametrize("kind", ["hidden", "input", "output", "bias", "norm"])
def test_depth_divides_by_its_square_root(kind):
    assert lr_factor(kind, 64, depth=16) == lr_factor(kind, 64) / 4
