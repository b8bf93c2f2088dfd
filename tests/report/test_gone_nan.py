"""A real recording of a model that goes NaN: the verdict names where it began."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unitscale.record import record
from unitscale.report import group, judge
from unitscale.report.verdict import Blank, blank_sentences


class Masked(nn.Module):
    """Two layers and a softmax with a mask, whose infinities are no fault."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(8).masked_fill(torch.arange(8) < 3, -math.inf)
        shares = torch.softmax(self.mix(torch.relu(self.up(x))) + mask, -1)
        return self.out(shares).square().mean()


def spoil_one_weight(model: Masked) -> None:
    model.mix.weight.data[0, 0] = math.nan


def spoil_a_gradient(model: Masked) -> None:
    model.out.weight.register_hook(lambda grad: grad * math.nan)


def overflow(model: Masked) -> None:
    model.up.bias.data *= math.inf


@pytest.mark.parametrize(
    ("spoil", "first"),
    [
        (None, None),
        (spoil_one_weight, "mix.weight"),
        (spoil_a_gradient, "out.weight (gradient)"),
        (overflow, "up.bias"),
    ],
)
def test_first_tensor_without_data_is_named(
    spoil: Callable[[Masked], None] | None, first: str | None
) -> None:
    model = Masked()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, every=1) as recorder:
        for step in range(5):
            if step == 3 and spoil is not None:
                spoil(model)
            optimizer.zero_grad()
            model(torch.randn(5, 4)).backward()
            optimizer.step()
    blank = judge(group([recorder.sink.header, *recorder.rows])).blank
    if first is None:
        assert blank is None
        return
    assert blank is not None
    assert blank.series.label.endswith(first)
    assert (blank.step, blank.before) == (3, 2)


def test_the_page_of_diverging_runs_quotes_what_is_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diverges.md").read_text()
    (quoted,) = re.findall(r'^## 3\. "(.*)"$', page, re.MULTILINE)
    series: Any = SimpleNamespace(label="the loss")
    blank = Blank(series=series, data_fraction=0.0, step=4, before=3, count=21, total=44)
    (sentence,) = blank_sentences(blank)
    assert re.match(re.escape(quoted).replace(r"\.\.\.", ".*"), sentence)
