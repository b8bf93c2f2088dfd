"""A weight of zeros that is shared out: each process asks for its own shard."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from unitscale.graph.place import Places

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize(("values", "changed"), [(torch.zeros(4, 4), False), (torch.eye(4), True)])
def test_a_shard_is_looked_at_by_itself(values, changed):
    model = nn.Linear(4, 4, bias=False)
    model.weight = nn.Parameter(distribute_tensor(values, init_device_mesh("cpu", (1,))))
    for name in ("weight", "self._modules.weight"):  # as FSDP2 has it
        assert Places(model).changed(["gone", name]) == ({name} if changed else set())
