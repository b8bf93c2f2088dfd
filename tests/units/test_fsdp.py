"""A recipe holds in a model that FSDP2 shards, however finely; here in one process."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import unitscale as us
from units.training import named
from unitscale.graph import engine

# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(model: nn.Module, mesh: DeviceMesh, kind: type[nn.Module], *, is_bf16: bool):
    """The model with all its modules of a kind sharded, and then what is left."""
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_bf16 else None, reduce_dtype=torch.float32
    )
    for module in model.modules():
        if isinstance(module, kind):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("compiles", [False, True], ids=["", "compile"])
@pytest.mark.parametrize("kind", [nn.Linear, Block])
def test_every_product_is_rounded(mesh: DeviceMesh, kind, compiles, is_bf16) -> None:
    plain = Model()
    model = Model()
    model.load_state_dict(plain.state_dict())
    us.unit_scale(model, "fp8", inner="eager")
    for one in (plain, model):
        sharded(one, mesh, kind, is_bf16=is_bf16)
    if compiles:
        model.compile(backend="eager")
    for step in range(3):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        got, want = model(x), plain(x)
        got.float().square().mean().backward()
        # FP8 products are 2^-6 off on average; BF16 ones alone 2^-9, and five of them 2^-8.
        assert 2.0**-8 < ((got - want).norm() / want.norm()).item() < 0.25
    assert us.coverage(model) == 1.0
    found = us.summary(model)
    assert (found.plain, found.unseen) == ({}, ())
    paths = ["head", *(f"blocks.{i}.{part}" for i in range(2) for part in ("up", "down"))]
    assert {f"{path}.linear" for path in paths} <= named(model).keys()


def test_a_sharded_layer_keeps_every_bit_where_nothing_is_rounded(mesh: DeviceMesh) -> None:
    plain, model = Model(), Model()
    model.load_state_dict(plain.state_dict())
    us.unit_scale(model, "fp32-units", inner="eager")
    losses = []
    for one in (plain, model):
        sharded(one, mesh, nn.Linear, is_bf16=False)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(3):
            x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
            loss = one(x).square().mean()
            losses.append(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(torch.stack(losses[:3]), torch.stack(losses[3:]))


def test_hooks_that_dynamo_does_not_capture_are_known(mesh: DeviceMesh) -> None:
    layers = [nn.Linear(8, 8) for _ in range(4)]
    fully_shard(layers[1], mesh=mesh)
    layers[2].register_full_backward_hook(lambda *args: None)
    layers[3].register_forward_hook(lambda *args: None)
    assert [engine.has_uncaptured_hooks(layer) for layer in layers] == [False, True, True, False]
