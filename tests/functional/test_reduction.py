import pytest
import torch

import unitscale.functional as U


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2), ()])
@pytest.mark.parametrize("keepdim", [False, True])
def test_sum_and_mean_are_one_value_under_torchs_forms(
    dim: int | tuple[int, ...] | None, keepdim: bool
) -> None:
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    plain = torch.sum(x, dim, keepdim)
    count = x.numel() // plain.numel()
    torch.testing.assert_close(U.sum(x, dim, keepdim), plain / count**0.5)
    torch.testing.assert_close(U.mean(x, dim, keepdim), plain / count**0.5)


def test_position_i_of_a_cumsum_has_the_stated_scale() -> None:
    y = U.cumsum(torch.randn(2**14, 16), 1)
    positions = torch.arange(1, 17)
    # 2^14 samples of each position: five standard errors are 2.8 %.
    torch.testing.assert_close(y.std(0), (2 * positions / 17).sqrt(), rtol=0.028, atol=0)


def test_gmean_of_a_mean_is_n_to_three_quarters() -> None:
    x = torch.randn(16, dtype=torch.float64)
    torch.testing.assert_close(U.mean(x, 0, constraint="gmean"), x.mean(0) * 16**0.75)


def test_integers_are_refused() -> None:
    for name in ("sum", "mean", "cumsum", "logsumexp"):
        with pytest.raises(TypeError, match=rf"{name}: input has dtype torch\.int64"):
            getattr(U, name)(torch.ones(3, dtype=torch.int64), 0)
