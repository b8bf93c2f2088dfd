"""Tensors seen group by group."""

import pytest
import torch

from unitscale.formats import PerAxis, PerBlock, PerTensor, PerTile
from unitscale.formats.grouping import amax_within, grouping, pieces

KINDS = [PerTensor(), PerAxis(), PerAxis(0), PerBlock(4), PerBlock(4, 0), PerBlock(4, 1)]
KINDS += [PerTile(4, 8), PerTile(1, 4), PerTile(64, 64)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


@each_kind
@pytest.mark.parametrize("shape", [(8, 16), (7, 13), (2, 5, 9), (3, 0), (0, 3)], ids=str)
def test_join_undoes_split(kind, shape):
    groups = grouping(shape, kind)
    x = torch.randn(shape)
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(groups.join(groups.split(given)), x)
    assert torch.equal(groups.join(groups.keep_whole(groups.split(x))), x)


@each_kind
def test_scales_lie_beside_their_groups(kind):
    """Each group filled with the number of its scale: then every amax is that number."""
    groups = grouping((7, 13), kind)
    scale = torch.arange(1.0, 1 + torch.Size(groups.scale_shape).numel()).view(groups.scale_shape)
    blocks = groups.split(torch.ones(7, 13)) * groups.spread(scale)
    assert torch.equal(groups.unspread(amax_within(blocks, groups.within)), scale)


def test_where_blocks_divide_nothing_is_copied():
    x = torch.randn(8, 16)
    for kind in KINDS[:-1]:
        assert grouping((8, 16), kind).split(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("shape", [(8, 200), (8, 64), (3, 0)], ids=str)
def test_a_block_longer_than_the_axis_is_the_axis(shape):
    """A block of a million would be filled up to a million elements a row."""
    x = torch.randn(shape)
    for kind in (PerBlock(10**6), PerTile(10**6, 10**6), PerBlock(10**15)):
        groups = grouping(shape, kind)
        blocks = groups.split(x)
        assert blocks.numel() == x.numel()
        assert torch.equal(groups.join(blocks), x)
        amax = groups.unspread(amax_within(blocks, groups.within))
        assert amax.shape == groups.scale_shape
    assert grouping((8, 5), PerBlock(128)).split(torch.randn(8, 5)).shape == (8, 1, 128)


def test_amax_of_nan_inf_and_nothing():
    x = torch.tensor([[1.0, torch.nan], [-torch.inf, 2.0], [-3.0, 2.0]])
    assert amax_within(x, ()).isnan()
    assert amax_within(x, (1,))[0].isnan()
    assert amax_within(x, (1,))[1:].flatten().tolist() == [torch.inf, 3.0]
    assert amax_within(torch.zeros(0), ()) == 0
    assert amax_within(torch.zeros(2, 0), (1,)).tolist() == [[0.0], [0.0]]


def test_pieces_are_few_groups_at_a_time(monkeypatch):
    monkeypatch.setattr("unitscale.formats.grouping.piece_size", lambda: 32)
    sizes = []

    def part(blocks, scale, axes):
        sizes.append(blocks.numel())
        return [blocks * 2, amax_within(blocks, axes)]

    x = torch.randn(3, 5, 8)
    doubled, amax = pieces(part, x, None, (2,))
    assert torch.equal(doubled, x * 2)
    assert torch.equal(amax, x.abs().amax(2, keepdim=True))
    assert sizes == [32, 32, 32, 24]
    pieces(part, x, None, ())
    assert sizes[-1] == x.numel()
