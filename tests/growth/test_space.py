import pytest
import torch

from unitscale.growth.space import copied, grouped, padded

SIZES = [(old, new) for old in range(1, 6) for new in range(old, 14)]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_copies_share_what_one_had(old, new):
    for space in (copied(old, new), copied(old, new, size=3)):
        shares = torch.zeros(space.old, dtype=torch.float64)
        shares.index_add_(0, space.source, 1 / space.counts)
        torch.testing.assert_close(shares, torch.ones_like(shares))
        assert space.source[: space.old].tolist() == list(range(space.old))
        assert int(space.is_first.sum()) == space.old
        assert space.copies == new / old


def test_a_residual_stream_is_copied_evenly_or_padded():
    assert not padded(4, 12).is_padded
    space = padded(4, 6)
    assert space.is_padded
    assert space.counts.tolist() == [1.0] * 6
    assert space.copies == 1.0
    assert space.shrink == pytest.approx((4 / 6) ** 0.5, rel=1e-15)


@pytest.mark.parametrize("new", [(2, 2), (2, 3), (4, 2), (3, 5)])
def test_a_group_of_heads_keeps_all_its_queries(new):
    old, size = (2, 2), 3
    space = grouped(old, new, size)
    heads = space.source.reshape(new[0], new[1], size)[..., 0] // size
    for group, found in enumerate(heads):
        source = group % old[0]
        assert set(found.tolist()) == {source * old[1] + member for member in range(old[1])}
    assert space.source.tolist() == [
        int(head) * size + element for head in heads.flatten() for element in range(size)
    ]
