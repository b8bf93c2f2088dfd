"""Data-parallel processes agree on units, although each sees a share of the batch."""

import faulthandler
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from unitscale.units import rows, unit_scale
from unitscale.units.forward import require_session
from unitscale.units.reading import Reading, merged
from unitscale.units.replicas import agree, groups_of
from unitscale.units.store import UnitStore

PROCESSES = 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).square().mean()


def run(rank: int, folder: Path, wrapper: str) -> None:
    """Three steps; the processes differ in the scale of their data, and in when they recompile."""
    faulthandler.dump_traceback_later(300, exit=True)  # the parent waits for as long as it takes
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES
    )
    torch.manual_seed(0)
    model = unit_scale(Model(), "fp8", inner="eager", remeasure="once")
    wrapped = fully_shard(model) if wrapper == "fsdp" else DistributedDataParallel(model)
    alone = []
    for step in range(3):
        x = torch.randn(4 + step * rank, 8) * 1000.0**rank
        wrapped(x).backward()
        if step == 0:
            alone = [(row.name, row.rms) for row in rows(model)]  # on one's own share
        if rank == 0 and wrapper == "ddp":
            with torch.no_grad():
                model(x)  # one process evaluates, and waits for nobody
    found = [(row.name, row.s, row.phi, row.rms) for row in rows(model)]
    torch.save({"alone": alone, "together": found}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_processes_end_with_the_same_units(tmp_path: Path, wrapper: str) -> None:
    torch.multiprocessing.spawn(run, (tmp_path, wrapper), nprocs=PROCESSES)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    assert first["together"] == second["together"]
    own = [dict(found["alone"])["x"] for found in (first, second)]
    assert own[1] > 100 * own[0]
    (both,) = (rms for name, _, _, rms in first["together"] if name == "x")
    assert both == pytest.approx(math.sqrt((own[0] ** 2 + own[1] ** 2) / 2))


# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
BREAKS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Refusing(Model):
    """Looks at its input after its first graph."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if bool(x.isnan().any()):
            raise ValueError("no such batch")
        return self.second(y.tanh()).square().mean()


def run_with_failure(rank: int, folder: Path) -> None:
    """In the second process every second call fails at first, and is made again."""
    faulthandler.dump_traceback_later(300, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES
    )
    torch.manual_seed(0)
    model = unit_scale(Refusing(), "fp8", inner="eager", remeasure=[0, 2])
    wrapped = DistributedDataParallel(model)
    for step in range(5):
        if rank == 1 and step % 2:
            for _ in range(step):
                with pytest.raises(ValueError, match="no such batch"):
                    wrapped(torch.full((4, 8), torch.nan))
        wrapped(torch.randn(4, 8) * 10.0 ** (rank + step)).backward()
    found = {(row.name, row.s, row.phi, row.rms) for row in rows(model)}
    step = require_session(model, "test").store.step
    torch.save((step, found), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_call_that_fails_in_one_process_leaves_the_others_in_step(tmp_path: Path) -> None:
    """As with DDP alone, where only a backward pass waits for the others."""
    torch.multiprocessing.spawn(run_with_failure, (tmp_path,), nprocs=PROCESSES)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    assert (first[0], second[0]) == (5, 5)
    assert first[1] <= second[1]  # which captured more: Dynamo looks anew after an exception


def test_processes_that_lost_each_other_are_told_what_happened(monkeypatch) -> None:
    def times_out(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Timed out waiting 1800000ms for recv operation to complete")

    monkeypatch.setattr(dist, "get_backend", lambda group: "gloo")
    monkeypatch.setattr(dist, "all_reduce", times_out)
    store = UnitStore(scale=True)
    store.step = 7
    with pytest.raises(RuntimeError, match=r"agree on its units before training call 7.*Timed out"):
        agree(store, [None])


@BREAKS
def test_a_call_that_fails_counts_as_none() -> None:
    model = unit_scale(Refusing(), "fp8", inner="eager")
    for _ in range(3):
        with pytest.raises(ValueError, match="no such batch"):
            model(torch.full((4, 8), torch.nan))
        model(torch.randn(4, 8)).backward()
    assert require_session(model, "test").store.step == 3


def test_a_model_of_one_process_has_no_replicas() -> None:
    assert groups_of(Model()) == []


def test_merged_is_the_reading_of_all_shares() -> None:
    left, right = torch.randn(2, 100) * torch.tensor([[1.0], [30.0]])
    found = [
        {"x": asdict(Reading(rms=x.square().mean().sqrt().item(), amax=x.abs().max().item()))}
        for x in (left, right)
    ]
    found[1]["y"] = asdict(Reading(rms=2.0, grad_rms=None, flushed=0.5))
    both = torch.cat([left, right])
    result = merged(found)
    assert result["x"].rms == pytest.approx(both.square().mean().sqrt().item())
    assert (result["x"].amax, result["x"].grad_rms) == (both.abs().max().item(), None)
    assert result["y"] == Reading(rms=2.0, flushed=0.5)
