"""FSDP2 and `torch.distributed.checkpoint`: the numbers of one process, on any number of them.

The processes do all checks one after another: starting them takes longer than the checks.
"""

import faulthandler
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from optim.state_cases import BF16, FP32, PAIRS, adamw
from processes import start_together
from unitscale.optim.parts import part_of

HELD = [pair for pair in PAIRS if pair[1] != torch.float16]
QUICK = [("fp8-lm", BF16), ("coat", FP32), ("bf16-stochastic", BF16)]
"""A scale of the whole tensor, blocks, and bits by chance; the rest where there is time."""

STEPS = 3


class Model(nn.Module):
    """Rows that do not divide by the processes, fewer rows than processes, and one without use."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"tall": (35, 150), "wide": (7, 261), "row": (1, 300), "bias": (35,)}
        for name, shape in {**shapes, "unused": (5, 130)}.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))


def model_of(dtype: torch.dtype, mesh: DeviceMesh | None = None) -> nn.Module:
    model = Model().to(dtype)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """The same gradients for every way to cut them; the first row is much larger than the rest."""
    for step in numbers:
        generator = torch.Generator().manual_seed(step)
        for name, parameter in model.named_parameters():
            grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            grad[0] *= 1000.0
            if isinstance(parameter, DTensor):
                grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements)
            parameter.grad = None if name == "unused" else grad
        optimizer.step()


def contents(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All parameters and states, whole."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = whole(parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}.{key}"] = whole(value)
    return found


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    assert left.keys() == right.keys(), f"{what}: {left.keys() ^ right.keys()}"
    for name in left:
        assert torch.equal(left[name], right[name]), f"{what}: {name}"


def optimizer_of(model: nn.Module, states: str) -> torch.optim.Optimizer:
    return adamw(model.named_parameters(), states, seed=9, chunk_size=400)


def everything(rank: int, folder: Path, processes: int, saving: int) -> None:
    """Train on `saving` processes, save; load on all of them and on one, and train on."""
    faulthandler.dump_traceback_later(300, exit=True)  # the parent waits for as long as it takes
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=processes
    )
    few = DeviceMesh("cpu", list(range(saving)))
    one = [dist.new_group([member]) for member in range(processes)][rank]
    mesh = init_device_mesh("cpu", (processes,))
    for states, dtype in QUICK if processes == 2 else HELD:
        what = f"{states} {dtype} on {processes}, rank {rank}"
        place = folder / f"{states}-{dtype}"
        alone = model_of(dtype)
        reference = optimizer_of(alone, states)
        steps(alone, reference, range(STEPS))
        expected = contents(alone, reference)

        if rank < saving:
            model = model_of(dtype, few)
            optimizer = optimizer_of(model, states)
            steps(model, optimizer, range(STEPS))
            assert_equal(contents(model, optimizer), expected, f"{what}: one process")
            saved = {"model": model.state_dict(), "optimizer": saved_of(model, optimizer)}
            dcp.save(saved, checkpoint_id=place, process_group=few.get_group())
        dist.barrier()

        later = optimizer_of(alone, states)
        later.load_state_dict(reference.state_dict())
        steps(alone, later, range(STEPS, STEPS + 2))
        final = contents(alone, later)
        for other, group in ((mesh, mesh.get_group()), (None, one)):
            model = model_of(dtype, other)
            optimizer = optimizer_of(model, states)
            loaded = {"model": model.state_dict(), "optimizer": saved_of(model, optimizer)}
            planner = DefaultLoadPlanner(allow_partial_load=True)  # no state of `unused` was saved
            dcp.load(loaded, checkpoint_id=place, process_group=group, planner=planner)
            model.load_state_dict(loaded["model"])
            set_optimizer_state_dict(model, optimizer, loaded["optimizer"])
            found = {k: v for k, v in contents(model, optimizer).items() if "unused." not in k}
            assert_equal(found, expected, f"{what}: loaded, {other}")
            steps(model, optimizer, range(STEPS, STEPS + 2))
            found = {k: v for k, v in contents(model, optimizer).items() if "unused." not in k}
            assert_equal(found, final, f"{what}: two steps on, {other}")
        whole_checkpoint(mesh, states, dtype, expected)
    codecs_change(mesh)
    dist.destroy_process_group()


def saved_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return get_optimizer_state_dict(model, optimizer)


def whole_checkpoint(mesh: DeviceMesh, states: str, dtype: torch.dtype, expected: dict) -> None:
    """One plain file for all processes, as `full_state_dict` makes and takes it."""
    model = model_of(dtype, mesh)
    optimizer = optimizer_of(model, states)
    steps(model, optimizer, range(STEPS))
    options = StateDictOptions(full_state_dict=True, strict=False)  # for `unused`
    full = get_optimizer_state_dict(model, optimizer, options=options)
    model.zero_grad()  # or torch takes no step to create the states that it fills
    again = optimizer_of(model, states)
    set_optimizer_state_dict(model, again, full, options=options)
    found = {k: v for k, v in contents(model, again).items() if "unused." not in k}
    assert_equal(found, expected, f"{states} {dtype}: whole checkpoint")


def codecs_change(mesh: DeviceMesh) -> None:
    """A state_dict of other states, cut or whole, is what one process makes of it."""
    for source, target in (("fp32", "fp8-lm"), ("fp8-lm", "coat"), ("coat", "master24")):
        found = []
        for cut in (None, mesh):
            model = model_of(BF16, cut)
            optimizer = optimizer_of(model, source)
            steps(model, optimizer, range(STEPS))
            other = optimizer_of(model, target)
            other.load_state_dict(optimizer.state_dict())
            steps(model, other, range(STEPS, STEPS + 1))
            found.append(contents(model, other))
        assert_equal(*found, f"{source} to {target}")


@pytest.mark.parametrize(
    ("processes", "saving"),
    [
        (2, 2),
        pytest.param(3, 2, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_gives_the_bits_of_one(tmp_path, processes, saving):
    arguments = (tmp_path, processes, saving)
    start_together(everything, arguments, processes)


def test_assert_equal_sees_one_bit():
    one = torch.ones(3)
    with pytest.raises(AssertionError, match="here: w"):
        assert_equal({"w": one}, {"w": torch.nextafter(one, 2 * one)}, "here")
    with pytest.raises(AssertionError, match="here: "):
        assert_equal({"w": one}, {}, "here")


@pytest.fixture
def mesh():
    """One process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_parameter_that_is_cut_between_columns_is_refused(mesh):
    cut = nn.Parameter(distribute_tensor(torch.randn(4, 300), mesh, [Shard(1)]))
    with pytest.raises(ValueError, match=r"'0': a parameter is a DTensor with placements .*Shard"):
        adamw([cut], "coat")
    with pytest.raises(ValueError, match="expected Replicate"):
        part_of(cut)


def test_a_gradient_that_is_cut_otherwise_is_refused_before_anything_changes(mesh):
    parameter = nn.Parameter(distribute_tensor(torch.randn(4, 300), mesh, [Shard(0)]))
    optimizer = adamw([nn.Parameter(torch.randn(4, 300)), parameter], "coat")
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 300)
    parameter.grad = distribute_tensor(torch.ones(4, 300), mesh, [Shard(1)])
    with pytest.raises(ValueError, match="gradient of '1' is distributed in another way"):
        optimizer.step()
    assert not optimizer.state


def test_torchs_own_loading_spoils_a_sharded_checkpoint(mesh):
    """Without `load_state_dict` of ours, the codes come back as float32 and the next step fails."""
    model = model_of(FP32, mesh)
    optimizer = optimizer_of(model, "coat")
    steps(model, optimizer, range(1))
    again = optimizer_of(model, "coat")
    torch.optim.Optimizer.load_state_dict(again, optimizer.state_dict())
    assert again.state[model.tall]["exp_avg"].dtype == FP32
    with pytest.raises((RuntimeError, ValueError, TypeError, AssertionError, IndexError)):
        steps(model, again, range(1, 2))
