"""Every operation is torch's, times a constant for the output and one for each gradient."""

from collections.abc import Callable

import pytest
import torch
from op_asserts import assert_multiple
from op_case import DEFAULT, Case
from op_cases import cases
from torch import Tensor

CASES = [pytest.param(case, id=case.name) for case in cases()]

# Operands whose edge a constraint ties to the output; parameters lie on cut-edges.
TIED = {"input", "other", "mat2", "left", "right", "gate", "query", "key", "value"}


def run(
    function: Callable[[dict[str, Tensor]], Tensor], case: Case, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Output and gradients of a function of the case's operands, for fixed draws."""
    torch.manual_seed(0)
    operands = case.draw(torch.float64)
    operands = {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for name, x in operands.items()
    }
    output = function(operands)  # draws its dropout from where the operands left the generator
    grad_output = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    if case.is_loss:
        grad_output = torch.ones_like(output)
    leaves = {name: x for name, x in operands.items() if x.requires_grad}
    grads = torch.autograd.grad(output, list(leaves.values()), grad_output)
    return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_multiples_of_torchs(case: Case) -> None:
    constraint = DEFAULT if DEFAULT in case.constraints else None
    got = run(lambda operands: case.call(operands, constraint), case, torch.float64)
    want = run(case.call_torch, case, torch.float64)
    if case.is_loss:
        assert torch.equal(got.pop("output"), want.pop("output"))
    ratios = {name: assert_multiple(got[name], want[name]) for name in want}
    if constraint is not None:
        for name in TIED & ratios.keys():
            assert ratios[name] == pytest.approx(ratios["output"], rel=1e-12), name


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_adds_no_more_than_the_roundings_of_its_factors(case: Case) -> None:
    constraint = DEFAULT if DEFAULT in case.constraints else None
    call = lambda operands: case.call(operands, constraint)
    try:
        plain = run(case.call_torch, case, torch.bfloat16)
    except NotImplementedError as error:
        pytest.skip(f"torch has none: {error}")
    exact_plain = run(case.call_torch, case, torch.float64)
    ours, exact = run(call, case, torch.bfloat16), run(call, case, torch.float64)
    for name, x in ours.items():
        assert x.dtype == (torch.float32 if case.is_loss and name == "output" else torch.bfloat16)
        # Three more roundings of up to 2^-9 each: on the edges in and out, and of a sum.
        assert distance(x, exact[name]) <= 2 * distance(plain[name], exact_plain[name]) + 3 * 2**-9


def distance(x: Tensor, exact: Tensor) -> float:
    return ((x.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("case", CASES)
def test_output_is_the_same_without_gradients(case: Case) -> None:
    constraint = DEFAULT if DEFAULT in case.constraints else None
    torch.manual_seed(0)
    operands = case.draw()
    state = torch.get_rng_state()
    with_grad = case.call(operands, constraint)
    torch.set_rng_state(state)
    with torch.no_grad():
        without = case.call(operands, constraint)
    assert with_grad.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_grad, without)
