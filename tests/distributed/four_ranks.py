"""What four ranks do for `test_ranks`: one start of processes for all that is to be seen there."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distributed.grid import gradients
from unitscale.distributed import (
    AutomaticScale,
    CurrentScale,
    RootScale,
    UnitScale,
    WireReport,
    fp8_all_gather,
    fp8_hook,
    fp8_reduce_scatter,
)
from unitscale.formats import BF16, E4M3FN, E5M2

RANKS = 4
SHAPES = [(64, 127), (127,), (31, 64), (3,)]
"""No number of ranks divides the elements of a bucket."""


class Given(nn.Module):
    """Its gradients are what one hands to its forward."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(s, dtype=dtype)) for s in SHAPES)

    def forward(self, given: list[Tensor]) -> Tensor:
        return sum((p * g).sum() for p, g in zip(self.parts, given, strict=True))


def drawn(rank: int, step: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gaussian gradients, other ones on each rank; the last rank's are 4 times as large."""
    made = torch.Generator().manual_seed(1000 * step + rank)
    return [
        (torch.randn(s, generator=made) * 10.0**-n * (4 if rank == RANKS - 1 else 1)).to(dtype)
        for n, s in enumerate(SHAPES)
    ]


def mean_of(ranks: int, step: int) -> Tensor:
    """What a sum in float64 gives."""
    total = sum(
        torch.cat([g.flatten().double() for g in drawn(rank, step)]) for rank in range(ranks)
    )
    return (total / ranks).float()


def passes(ddp: nn.Module, given: list[list[Tensor]]) -> list[Tensor]:
    """The gradients of a backward pass for each."""
    found = []
    for gradient in given:
        ddp.zero_grad()
        ddp(gradient).backward()
        found.append(gradients(ddp).clone())
    return found


def averages(rank: int, of: Any, **options: Any) -> tuple[list[Tensor], WireReport, str]:
    """Three passes over Gaussian gradients."""
    ddp = DistributedDataParallel(Given(), process_group=of, bucket_cap_mb=0.02)
    wire = fp8_hook(ddp, **options)
    found = passes(ddp, [drawn(rank, step) for step in range(3)])
    return found, wire.report(), str(wire.state_dict()["log2"])


ALL = {
    "unit": {},
    "unit again": {},
    "current": {"scale": CurrentScale()},
    "automatic": {"scale": AutomaticScale()},
    "root": {"scale": RootScale()},
    "E5M2": {"format": E5M2},
    "BF16 mean": {"mean_format": BF16},
    "stochastic": {"rounding": "stochastic"},
    "stochastic again": {"rounding": "stochastic"},
    "other seed": {"rounding": "stochastic", "seed": 1},
    "too high": {"scale": UnitScale(target_log2=7, remeasure="never")},
}


def work(rank: int, folder: Path) -> None:
    import warnings

    warnings.simplefilter("ignore")  # of saturation, which is looked at in the report
    pair, own, second = (dist.new_group([0, 1]) for _ in range(3))
    found: dict[str, Any] = {name: averages(rank, None, **options) for name, options in ALL.items()}
    if rank < 2:
        found["2 ranks"] = averages(rank, pair, group=own)
    found["not finite"] = not_finite(rank)
    found["no_sync"] = accumulated(rank)
    found["16 bits"] = {dtype: half(rank, dtype) for dtype in (torch.bfloat16, torch.float16)}
    found["refused"] = refused(rank)
    found["remeasured"] = remeasured(rank)
    found["states"] = states(rank)
    found["diverged"] = diverged(rank)
    if rank < 2:
        found["trained"] = [trained(rank, pair, own) for own in (None, second)]
        found["subset"] = subset(pair)
    found["sharded"] = {
        "4": sharded(rank, init_device_mesh("cpu", (RANKS,))),
        "2 x 2": sharded(rank, init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))),
    }
    torch.save(found, folder / f"{rank}.pt")


def not_finite(rank: int) -> list[list[Tensor]]:
    """A NaN, then an infinity, on rank 1 alone; then none."""
    found = []
    for scale in (UnitScale(remeasure="once"), CurrentScale(), UnitScale(remeasure="never")):
        ddp = DistributedDataParallel(Given())
        fp8_hook(ddp, scale=scale)
        given = []
        for value in (0.5, torch.nan, torch.inf, 0.5):
            gradient = drawn(rank, 0)
            if rank == 1:
                gradient[0][3, 5] = value
            given.append(gradient)
        found.append(passes(ddp, given))
    return found


def accumulated(rank: int) -> tuple[Tensor, WireReport]:
    """Two micro-batches, of which the second exchanges the sum."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp)
    with ddp.no_sync():
        ddp(drawn(rank, 0)).backward()
    ddp(drawn(rank, 1)).backward()
    return gradients(ddp), wire.report()


def half(rank: int, dtype: torch.dtype) -> Tensor:
    ddp = DistributedDataParallel(Given(dtype))
    fp8_hook(ddp)
    return passes(ddp, [drawn(rank, 0, dtype)])[0]


def refused(rank: int) -> list[str]:
    """The messages where ranks differ or one is wrong; the model is as it was each time."""
    ddp = DistributedDataParallel(Given())
    messages = []
    for options in (
        {"format": E5M2 if rank == 2 else E4M3FN},
        {"scale": UnitScale(target_log2=rank)},
        {"rounding": "up" if rank == 3 else "nearest"},
        {"seed": rank // 3},
    ):
        with pytest.raises(ValueError, match="fp8_hook: ") as caught:
            fp8_hook(ddp, **options)
        messages.append(str(caught.value))
    exact = passes(ddp, [drawn(rank, 0)])[0]
    torch.testing.assert_close(exact, mean_of(RANKS, 0))  # DDP's own mean
    return messages


def subset(pair: Any) -> list[str]:
    """What is said of a model on some ranks without a group for its hook, or with a wrong one."""
    ddp = DistributedDataParallel(Given(), process_group=pair)
    messages = []
    for group in (None, pair, dist.group.WORLD):
        with pytest.raises(ValueError, match="fp8_hook: ") as caught:
            fp8_hook(ddp, group=group)
        messages.append(str(caught.value))
    return messages


def remeasured(rank: int) -> list[int]:
    """Exchanges of amaxes after each pass; rank 2 alone asks before the third."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="once"))
    found = []
    for step in range(5):
        if step == 2 and rank == 2:
            wire.remeasure()
        passes(ddp, [drawn(rank, step)])
        found.append(wire.report().scale_exchanges)
    return found


def states(rank: int) -> str:
    """A state that differs on one rank is refused on all, and none has changed."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp)
    passes(ddp, [drawn(rank, 0)])
    state = wire.state_dict()
    wrong = copy.deepcopy(state)
    wrong["log2"]["parts.0"] += rank == 3
    with pytest.raises(ValueError, match="load_state_dict") as caught:
        wire.load_state_dict(wrong)
    assert wire.state_dict() == state
    wire.load_state_dict(state)
    return str(caught.value)


def diverged(rank: int) -> str:
    """Somebody wrote to the scales of one rank."""
    ddp = DistributedDataParallel(Given())
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="once"))
    passes(ddp, [drawn(rank, 0)])
    wire.state.log2["parts.0"] += rank == 1
    with pytest.raises(RuntimeError, match="cast their gradients at different") as caught:
        passes(ddp, [drawn(rank, 1)])
    return str(caught.value)


def trained(rank: int, group: Any, own: Any) -> tuple[list[float], Any]:
    """50 steps of a small classifier, each rank on its share of the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    ddp = DistributedDataParallel(model, process_group=group)
    wire = fp8_hook(ddp, group=own) if own else None
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    teacher = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(50):
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(2 + step))
        share = x[32 * rank : 32 * (rank + 1)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(share), (share @ teacher).argmax(1)).backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(model(x), (x @ teacher).argmax(1)).item())
    return losses, wire and wire.report()


class Blocks(nn.Module):
    """Three modules to shard; no number of ranks divides the rows of one, and another is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 255), nn.Linear(255, 6)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def sharded(rank: int, mesh: Any) -> dict[str, Any]:
    """Gradients and weights of an FSDP2 model, in 8 bits and in full."""
    torch.manual_seed(0)
    plain = Blocks()
    x = torch.randn(16 * RANKS, 64, generator=torch.Generator().manual_seed(7))
    share = x[16 * rank : 16 * (rank + 1)]
    found: dict[str, Any] = {}
    for name in ("full", "gradients", "weights", "not finite"):
        model = copy.deepcopy(plain)
        for part in (model.first, model.second):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        comm = None
        if name in ("gradients", "not finite"):
            comm = fp8_reduce_scatter(model)
        if name == "weights":
            comm = fp8_all_gather(model)
        nothing = str(comm and comm.report())
        y = model(share)
        factor = torch.nan if name == "not finite" and rank == 1 else 1.0
        (y.square().mean() * factor).backward()
        grads = torch.cat(
            [p.grad.full_tensor().flatten() for p in model.parameters() if p.grad is not None]
        )
        weights = torch.cat([p.full_tensor().flatten() for p in model.parameters()]).detach()
        found[name] = {
            "y": y.detach(),
            "grads": grads,
            "kept": torch.equal(weights, torch.cat([p.flatten() for p in plain.parameters()])),
            "report": comm and comm.report(),
            "nothing": nothing,
        }
    with pytest.raises(ValueError, match="fp8_reduce_scatter: ") as caught:
        fp8_reduce_scatter(model, format=E5M2 if rank == 3 else E4M3FN)
    found["refused"] = str(caught.value)
    with pytest.raises(ValueError, match="fp8_all_gather: ") as caught:
        fp8_all_gather(model, format=BF16)
    found["format"] = str(caught.value)
    return found
