"""Of an empty tensor, and along an axis of a tensor without axes: what torch returns or raises."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unitscale.functional as U


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


IDS = torch.zeros(0, dtype=torch.long)

# Each is run with torch.nn.functional (or torch) and with unitscale.functional.
CASES: dict[str, Callable[[ModuleType], Tensor]] = {
    "softmax, no rows": lambda m: m.softmax(leaf(0, 4), -1),
    "softmax, no entries": lambda m: m.softmax(leaf(4, 0), -1),
    "log_softmax of one number": lambda m: m.log_softmax(leaf(), 0),
    "layer_norm, no rows": lambda m: m.layer_norm(leaf(0, 4), (4,), leaf(4), leaf(4)),
    "layer_norm, no features": lambda m: m.layer_norm(leaf(4, 0), (0,), leaf(0), leaf(0)),
    "layer_norm, no parameters": lambda m: m.layer_norm(leaf(4, 0), (0,)),
    "layer_norm, nothing": lambda m: m.layer_norm(leaf(0, 0), (0,)),
    "rms_norm, no rows": lambda m: m.rms_norm(leaf(0, 4), (4,), leaf(4)),
    "rms_norm, no features": lambda m: m.rms_norm(leaf(4, 0), (0,), leaf(0)),
    "group_norm, no samples": lambda m: m.group_norm(leaf(0, 4, 3), 2, leaf(4), leaf(4)),
    "group_norm, no channels": lambda m: m.group_norm(leaf(3, 0, 3), 1, leaf(0), leaf(0)),
    "instance_norm, no samples": lambda m: m.instance_norm(leaf(0, 4, 3)),
    "linear, no rows": lambda m: m.linear(leaf(0, 4), leaf(3, 4), leaf(3)),
    "linear, no features": lambda m: m.linear(leaf(2, 0), leaf(3, 0), leaf(3)),
    "linear, no outputs": lambda m: m.linear(leaf(2, 4), leaf(0, 4), leaf(0)),
    "linear, one vector": lambda m: m.linear(leaf(4), leaf(3, 4), leaf(3)),
    "embedding, no tokens": lambda m: m.embedding(IDS, leaf(5, 3)),
    "prelu, no rows": lambda m: m.prelu(leaf(0, 4), leaf(4)),
    "gelu, nothing": lambda m: m.gelu(leaf(0)),
    "glu, no rows": lambda m: m.glu(leaf(0, 4)),
    "cross_entropy, no tokens": lambda m: m.cross_entropy(leaf(0, 4), IDS, reduction="sum"),
    "conv1d, no samples": lambda m: m.conv1d(leaf(0, 4, 5), leaf(3, 4, 2), leaf(3)),
    "attention, no samples": lambda m: m.scaled_dot_product_attention(*(leaf(0, 2, 4, 8),) * 3),
    "attention, no queries": lambda m: m.scaled_dot_product_attention(
        leaf(1, 2, 0, 8), leaf(1, 2, 4, 8), leaf(1, 2, 4, 8)
    ),
    "attention, no keys": lambda m: m.scaled_dot_product_attention(
        leaf(1, 2, 3, 8), leaf(1, 2, 0, 8), leaf(1, 2, 0, 8)
    ),
}
OF_TORCH: dict[str, Callable[[ModuleType], Tensor]] = {
    "matmul, no rows": lambda m: m.matmul(leaf(0, 4), leaf(4, 3)),
    "matmul, no inner size": lambda m: m.matmul(leaf(2, 0), leaf(0, 3)),
    "bmm, no samples": lambda m: m.bmm(leaf(0, 2, 3), leaf(0, 3, 4)),
    "add": lambda m: m.add(leaf(0, 3), leaf(3)),
    "add a number": lambda m: m.add(leaf(0, 3), 2.0),
    "mul": lambda m: m.mul(leaf(0, 3), leaf(3)),
    "sum": lambda m: m.sum(leaf(0, 3)),
    "sum of one number": lambda m: m.sum(leaf(), 0),
    "mean of no rows": lambda m: m.mean(leaf(0, 3), 1),
    "mean of one number": lambda m: m.mean(leaf(), -1),
    "cumsum of one number": lambda m: m.cumsum(leaf(), 0),
    "logsumexp of no entries": lambda m: m.logsumexp(leaf(3, 0), 1),
    "logsumexp of one number": lambda m: m.logsumexp(leaf(), 0),
}


@pytest.mark.parametrize("case", [*CASES, *OF_TORCH])
def test_shape_and_gradients_are_those_of_torch(case: str) -> None:
    run, theirs = (CASES[case], F) if case in CASES else (OF_TORCH[case], torch)
    got, want = run(U), run(theirs)
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    got.sum().backward()
