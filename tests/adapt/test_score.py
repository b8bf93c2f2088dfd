import math

import pytest
import torch

from unitscale.adapt import calibration_error, peak_bytes
from unitscale.adapt.score import entropy
from unitscale.adapt.search import Search, default_population


def test_calibration_error_by_hand():
    """Confidences 0.9, 0.9 (one right) and 0.6 (right): 2/3 |0.5 - 0.9| + 1/3 |1 - 0.6| = 0.4."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]], dtype=torch.float64)
    assert calibration_error(p.log(), torch.tensor([0, 0, 1])) == pytest.approx(0.4)
    sure = torch.tensor([[50.0, 0.0]])
    assert calibration_error(sure, torch.tensor([0])) == pytest.approx(0, abs=1e-12)
    assert calibration_error(sure, torch.tensor([1])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0), {}, "at least one image"),
        (torch.zeros(2, 2), torch.zeros(3), {}, r"labels \(3,\)"),
        (torch.full((1, 2), torch.nan), torch.zeros(1), {}, "hold NaN"),
        (torch.zeros(1, 2), torch.zeros(1), {"bins": 0}, "bins is 0"),
        (torch.zeros(1, 2), torch.zeros(1), {"bins": 1.5}, "bins is 1.5"),
        (torch.zeros(2, 2), torch.tensor([1, 2]), {}, "1 of 2 labels are no class.*2; expected"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), {}, "the first is -1"),
        ([[0.0]], [0], {}, "logits are a list"),
    ],
)
def test_calibration_error_refuses(logits, labels, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        calibration_error(logits, labels, **options)


def test_entropy_of_uniform_and_of_certain():
    assert entropy(torch.zeros(1, 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([[200.0, 0.0]])).item() == pytest.approx(0, abs=1e-12)


def test_a_class_that_is_ruled_out_adds_nothing_to_the_entropy():
    logits = torch.tensor([[1.0, 0.5, -torch.inf]], requires_grad=True)
    left = torch.tensor([[1.0, 0.5]], requires_grad=True)
    for x in (logits, left):
        entropy(x).sum().backward()
    assert torch.equal(entropy(logits), entropy(left))
    assert torch.equal(logits.grad[:, :2], left.grad)
    assert logits.grad[0, 2] == 0


def test_peak_bytes_counts_what_is_held_at_once():
    def run(together):
        kept = []
        for _ in range(3):
            kept = [*kept, torch.ones(2**18)] if together else [torch.ones(2**18)]

    assert peak_bytes(lambda: run(True)) == 3 * 2**20
    assert peak_bytes(lambda: run(False)) <= 2 * 2**20
    with pytest.raises(ValueError, match="device is meta"):
        peak_bytes(lambda: None, device="meta")


def test_the_search_finds_a_minimum_and_goes_on_from_its_state():
    assert default_population(3 * 768) == 27  # as published
    search = Search(4, population=8, sigma=1.0, seed=0)

    def fitness(x):
        return float(((x - 1) ** 2).sum())

    def generations(search, count):
        for _ in range(count):
            asked = search.ask()
            search.tell(asked, [fitness(x) for x in asked])

    generations(search, 60)
    mean = search.state_dict()["mean"]
    assert fitness(torch.tensor(mean).numpy()) < 1e-3
    state = search.state_dict()
    other = Search(4, population=8, sigma=state["sigma"], seed=1, mean=search.evolution.mean)
    assert other.state_dict()["mean"] == mean
