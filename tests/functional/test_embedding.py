import pytest
import torch
import torch.nn.functional as F
from op_asserts import assert_multiple

import unitscale.functional as U
from validity import true_gradients


def test_table_gradient_is_multiplied_by_the_root_of_rows_per_lookup() -> None:
    ids = torch.randint(50, (4, 8))
    table = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    grad_output = torch.randn(4, 8, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad(U.embedding(ids, table), table, grad_output)
    (want,) = torch.autograd.grad(F.embedding(ids, table), table, grad_output)
    torch.testing.assert_close(got, want * (50 / 32) ** 0.5)


def test_sparse_gradients_stay_sparse() -> None:
    table = torch.randn(1000, 4, requires_grad=True)
    ids = torch.tensor([3, 5, 3, 7])
    U.embedding(ids, table, sparse=True).sum().backward()
    sparse, table.grad = table.grad, None
    U.embedding(ids, table).sum().backward()
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), table.grad)


def test_the_padding_row_has_no_gradient() -> None:
    table = torch.randn(10, 4, requires_grad=True)
    U.embedding(torch.tensor([1, 2, 2]), table, padding_idx=2).sum().backward()
    assert table.grad[2].abs().sum() == 0
    assert table.grad[1].abs().sum() > 0


def test_max_norm_renormalizes_as_in_torch() -> None:
    ours, theirs = (torch.full((10, 4), 3.0, requires_grad=True) for _ in range(2))
    ids = torch.tensor([1, 2])
    assert torch.equal(U.embedding(ids, ours, max_norm=1.0), F.embedding(ids, theirs, max_norm=1.0))


@pytest.mark.parametrize(("constraint", "is_valid"), [(None, True), ("to_output_scale", False)])
def test_a_table_that_is_also_the_readout_needs_a_free_readout(
    constraint: str | None, is_valid: bool
) -> None:
    """`sqrt(V / N) * V**-0.5` through the model and `N**-0.5` straight from the read-out agree."""
    ids = torch.randint(20, (64,))
    table = torch.randn(20, 16, dtype=torch.float64, requires_grad=True)
    w = torch.randn(16, 16, dtype=torch.float64)

    def gradient() -> torch.Tensor:
        h = U.residual_apply(lambda h: U.tanh(U.linear(h, w)), U.embedding(ids, table))
        logits = U.linear_readout(h, table, constraint=constraint)
        return torch.autograd.grad(U.cross_entropy(logits, ids.roll(-1)), table)[0]

    got = gradient()
    with true_gradients():
        want = gradient()
    if is_valid:
        assert_multiple(got, want)
    else:
        with pytest.raises(AssertionError, match="distance"):
            assert_multiple(got, want)


@pytest.mark.parametrize(
    ("ids", "table", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(5, 2), TypeError, r"dtype torch.float32.*input\.long\(\)"),
        (torch.tensor([1]), torch.zeros(5, 2).long(), TypeError, r"weight has dtype torch.int64"),
        (torch.tensor([1]), torch.zeros(5), ValueError, r"weight has shape \[5\], expected \[num"),
    ],
)
def test_a_wrong_call_says_value_expectation_and_fix(
    ids: torch.Tensor, table: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        U.embedding(ids, table)
