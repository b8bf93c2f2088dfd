"""Functions that save their inputs in eight bits: exact forward, a derivative at rounded inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitscale.formats import E4M3FN, E5M2, FP16, round_to
from unitscale.train.measure import saved_for_backward
from unitscale.units import unit_scale
from unitscale.units.saved import BY_NAME, saving

UNIT = torch.tensor(2.0**-3)


def normal(*shape: int) -> Tensor:
    return (torch.randn(*shape) * UNIT).requires_grad_()


def as_saved(x: Tensor, fmt=E4M3FN) -> Tensor:
    return (round_to(x.detach() / UNIT, fmt, saturate=True) * UNIT).requires_grad_()


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, FP16])
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_derivative_is_taken_at_the_rounded_input(name, fmt):
    count = 2 if name == "mul" else 1
    tensors = [normal(64) for _ in range(count)]
    grad = torch.randn(64)
    output = saving(name, fmt.name, (UNIT,) * count, *tensors)
    assert torch.equal(output, BY_NAME[name](*tensors))
    got = torch.autograd.grad(output, tensors, grad)
    points = [as_saved(x, fmt) for x in tensors]
    want = torch.autograd.grad(BY_NAME[name](*points), points, grad)
    exact = torch.autograd.grad(BY_NAME[name](*tensors), tensors, grad)
    for a, b, c in zip(got, want, exact, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_options_reach_the_function():
    x = normal(64)
    output = saving("gelu", "E4M3FN", (None,), x, approximate="tanh")
    assert torch.equal(output, F.gelu(x, approximate="tanh"))
    assert not torch.equal(output, F.gelu(x))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = (nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.gate(x) * 5) * self.up(x)
        return self.down(F.gelu(hidden)).square().mean()


def trained(inner: str, **options) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of a measuring step and of one after it, and the gradients of that."""
    torch.manual_seed(0)
    model = unit_scale(Gated(), "fp32-units", inner=inner, remeasure="once", **options)
    x, losses = torch.randn(16, 32), []
    for _ in range(2):
        model.zero_grad()
        loss = model(x)
        loss.backward()
        losses.append(loss.item())
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_a_model_computes_the_same_and_its_gradients_are_close(inner):
    losses, grads = trained(inner)
    saved_losses, saved_grads = trained(inner, saved=E4M3FN)
    assert saved_losses == losses
    for name, grad in grads.items():
        error = ((saved_grads[name] - grad).norm() / grad.norm()).item()
        # E4M3FN is off by 2^-4 at most and 2^-5 on average; four functions lie behind a weight.
        assert error < 4 * 2**-5, name
        assert (error == 0) == (name == "down.weight"), name  # nothing saved lies behind it


@pytest.mark.skipif(torch.__version__ < "2.13", reason="its partitioner keeps less to begin with")
def test_fewer_bytes_are_kept():
    def kept(**options) -> int:
        torch.manual_seed(0)
        inner = "aot_eager_decomp_partition"
        model = unit_scale(Gated(), "fp8", inner=inner, remeasure="once", **options)
        x = torch.randn(64, 32)
        model(x).backward()
        with saved_for_backward(model) as found:
            model(x)
        return found.bytes

    # Gate and up had four bytes each, and what follows was computed again from them. Now they have
    # one, as silu(gate), GELU's input and the operand of `down` do. There are more factors to keep.
    spared = (2 * 4 - 5) * 64 * 32
    assert spared - 4 * 32 < kept() - kept(saved=E4M3FN) <= spared


def test_a_product_with_a_number_is_left_alone():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.mul(self.weight, 3.0) * x).sum()

    model = unit_scale(Model(), "fp32-units", inner="eager", saved=E4M3FN)
    for _ in range(2):
        model(torch.ones(8)).backward()
    assert torch.equal(model.weight.grad, torch.full((8,), 6.0))
