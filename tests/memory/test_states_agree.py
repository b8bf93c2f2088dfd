"""The table of state bytes, which needs no torch, says what the optimizers hold."""

import pytest
import torch
from torch import nn

from unitscale import optim
from unitscale.memory.states import STATES, state_bytes, state_formats

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


NAMES = {
    "own": "the parameter itself",
    "split": "2 bytes beside it",
    "master tensorscaled FP16": "scaled FP16, a copy",
    "stochastic": "the parameter itself, rounded stochastically",
    "corrected": "1 byte beside it",
    "float32": "fp32",
    "tensorscaled E4M3FN": "scaled E4M3FN",
    "tensorscaled FP16": "scaled FP16",
    "expanded 1x128": "E4M3FN, expanded, a scale for 128",
    "companded 1x64": "companded, a scale for 64",
}
"""What each codec is called by a plan."""


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_words_of_the_table_are_those_of_the_codecs(name: str, dtype: str) -> None:
    weight = nn.Parameter(torch.zeros(256, 2048, dtype=DTYPES[dtype]))
    (row,) = optim.AdamW([weight], lr=1e-3, rules=None, states=name).state_rows()
    said = state_formats(name, dtype)
    assert said["master"].endswith(NAMES[row.weight])
    assert all(NAMES[codec] in said["moments"] for codec in row.moments.values())
    assert (len(set(row.moments.values())) == 1) or " and " in said["moments"]
