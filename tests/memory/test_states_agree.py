"""The table of state bytes, which needs no torch, says what the optimizers hold."""

import pytest
import torch
from torch import nn

from unitscale import optim
from unitscale.memory.states import STATES, state_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = [(name, dtype) for name, states in STATES.items() for dtype in states.weight]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_wide_matrix_has_the_bytes_of_the_table(name: str, dtype: str) -> None:
    """The scale of a tensor and the step are four bytes each of half a million."""
    weight = nn.Parameter(torch.randn(256, 2048).to(DTYPES[dtype]))
    optimizer = optim.AdamW([weight], lr=1e-3, rules=None, states=name)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    held = optimizer.state_bytes() / weight.numel()
    assert held == pytest.approx(sum(state_bytes(name, dtype).values()), rel=1e-3)
