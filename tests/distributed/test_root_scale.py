"""A scale that is no power of two is accepted by processes that try it out."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import unitscale as us
from processes import work_together
from unitscale.formats import E4M3FN, E5M2


def run(rank: int, folder: Path) -> None:
    for fmt in (E4M3FN, E5M2):
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Linear(32, 32))
        us.distributed.fp8_hook(model, format=fmt, scale=us.distributed.RootScale())
        x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
        model(x[rank]).square().mean().backward()
        plain = nn.Linear(32, 32)
        plain.load_state_dict(model.module.state_dict())
        torch.stack([plain(part).square().mean() for part in x]).mean().backward()
        want, got = plain.weight.grad, model.module.weight.grad
        off = (got - want).norm() / want.norm()
        # Two roundings, each off by half a unit in the last place at most; E5M2 has 3 bits.
        assert 0 < off < 2 * 2.0 ** -(fmt.mantissa_bits + 1)


@pytest.mark.slow
def test_two_processes_take_one_over_root_two(tmp_path: Path) -> None:
    work_together(run, tmp_path)
