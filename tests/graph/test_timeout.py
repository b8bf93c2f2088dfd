"""How long a process group waits is read from it."""

from datetime import timedelta

import torch.distributed as dist

from unitscale.graph.engine import timeout_of


def test_timeout_of_a_group_is_the_one_that_it_was_made_with() -> None:
    wait = timedelta(seconds=8)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=wait)
    try:
        assert timeout_of(dist.group.WORLD) == wait
        other = dist.new_group(timeout=timedelta(seconds=9))
        assert timeout_of(other) == timedelta(seconds=9)
    finally:
        dist.destroy_process_group()
    assert timeout_of(None) is None
