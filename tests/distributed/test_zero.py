"""Whole tensors of states spread over ranks: who owns what, and the same run in every bit."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.grid import assert_few_bits
from processes import work_together
from unitscale import optim
from unitscale.distributed import partition, partition_states
from unitscale.formats import E4M3FN, FP32, Codec

GPT = [256 * 64, 64 * 64] + 4 * ([64, 64, 64 * 192, 64 * 64, 64, 64, 64 * 256, 256 * 64, 64])


def test_the_largest_goes_to_the_rank_with_the_least() -> None:
    assert partition([100, 60, 50, 30, 20], 3) == [0, 1, 2, 2, 1]
    assert partition([7, 7, 7], 2) == [0, 0, 1]  # 0 and 2 come before 1: index modulo ranks
    assert partition([], 4) == []
    with pytest.raises(ValueError, match=r"ranks is 0; expected an int of 1 or more"):
        partition([1], 0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_no_rank_has_more_than_the_mean_and_the_largest(ranks: int) -> None:
    draw = torch.Generator().manual_seed(0)
    many = [torch.randint(1, 10_000, (n,), generator=draw).tolist() for n in (1, 5, 40)]
    for numels in [GPT, *many]:
        owners = partition(numels, ranks)
        loads = [
            sum(n for n, o in zip(numels, owners, strict=True) if o == r) for r in range(ranks)
        ]
        assert sum(loads) == sum(numels)
        assert max(loads) <= sum(numels) / ranks + max(numels)


class Small(nn.Module):
    """Three matrices and two vectors; the first is more than half of all."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(80, 24, dtype=dtype)
        self.up = nn.Linear(24, 32, dtype=dtype)
        self.down = nn.Linear(32, 24, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(self.up(self.table(x)).relu())
        return hidden @ self.table.weight.T


def backward(model: Small, step: int) -> None:
    """The gradients of one step, the same on all ranks."""
    draw = torch.Generator().manual_seed(step)
    x = torch.randint(80, (6, 5), generator=draw)
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1).float(), x.roll(1).flatten())
    model.zero_grad()
    loss.backward()


Make = Callable[[Small], torch.optim.Optimizer]

OPTIMIZERS: dict[str, tuple[Make, torch.dtype]] = {
    "torch": (lambda m: torch.optim.AdamW(m.parameters(), 0.01), torch.float32),
    "momentum": (lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9), torch.float32),
    "fp8-lm": (lambda m: optim.AdamW(m, 0.01, rules=None, states="fp8-lm"), torch.bfloat16),
    "coat": (lambda m: optim.AdamW(m, 0.01, rules=None, states="coat"), torch.float32),
    "stochastic": (
        lambda m: optim.AdamW(m, 0.01, rules=None, states="bf16-stochastic"),
        torch.bfloat16,
    ),
}


def copied(state: Any) -> Any:
    """A state that shares no memory, as one that was saved and read."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """The parameters of two models are equal to the bit."""
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    for (name, a), b in pairs:
        assert torch.equal(a, b), name


def tensors_of(optimizer: torch.optim.Optimizer) -> int:
    """How many parameters have states."""
    return sum(bool(state) for state in optimizer.state.values())


def as_without(rank: int, folder: Path) -> None:
    for make, dtype in OPTIMIZERS.values():
        alone, spread = Small(dtype), Small(dtype)
        reference, optimizer = make(alone), make(spread)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table is more than half
            zero = partition_states(optimizer)
        for step in range(4):
            for model, own in ((alone, reference), (spread, optimizer)):
                backward(model, step)
                own.step()
            assert_same(spread, alone)
            assert all(p.grad is not None for p in spread.parameters())
        count = len(list(spread.parameters()))
        mine = torch.tensor(tensors_of(optimizer))
        assert mine == len(zero.owned_by(rank)) < count == tensors_of(reference)
        assert zero.report().steps == 4
        gathered = zero.gathered_state_dict()
        assert (gathered is None) == (rank != 0)
        box = [gathered]
        dist.broadcast_object_list(box)
        gathered = copied(box[0])
        plain = make(alone)  # one process goes on with it
        plain.load_state_dict(copied(gathered))
        optimizer.load_state_dict(gathered)
        assert tensors_of(optimizer) == mine
        for model, own in ((alone, plain), (spread, optimizer)):
            backward(model, 9)
            own.step()
        assert_same(spread, alone)


def in_8_bits(rank: int, folder: Path) -> None:
    model, oracle = Small(), Small()
    optimizer = torch.optim.AdamW(model.named_parameters(), 3e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        zero = partition_states(optimizer, weights=E4M3FN)
    assert [str(w.message) for w in caught if "'table.weight' has 1,920 of" in str(w.message)] == (
        [str(w.message) for w in caught][: 1 - rank]
    )
    assert len(caught) == 1 - rank  # said once, by rank 0
    reference = torch.optim.AdamW(oracle.parameters(), 3e-3)
    codec = Codec(format=E4M3FN, power_of_two="rceil")
    exact = [p.detach().clone() for p in oracle.parameters()]
    for step in range(5):
        with torch.no_grad():  # by hand: gradients at rounded matrices, steps from exact ones
            for p, x in zip(oracle.parameters(), exact, strict=True):
                p.copy_(codec.decode(codec.encode(x)) if x.dim() == 2 else x)
        assert_same(model, oracle)
        backward(oracle, step)
        backward(model, step)
        with torch.no_grad():
            for p, x in zip(oracle.parameters(), exact, strict=True):
                p.copy_(x)
        reference.step()
        exact = [p.detach().clone() for p in oracle.parameters()]
        optimizer.step()
    assert_few_bits(model.up.weight.detach(), E4M3FN)
    with zero.whole_weights():
        assert_same(model, oracle)
    assert_few_bits(model.up.weight.detach(), E4M3FN)
    own = [(p.numel() + 1) if p.dim() == 2 else 4 * p.numel() for p in zero.owned_by(rank)]
    whole = [4 * p.numel() for p in zero.owned_by(rank)]
    assert zero.report().bytes_sent == (1 + 5 + 1) * sum(own) + sum(whole)
    with torch.no_grad():
        model.up.weight.fill_(0.3)  # somebody else's value counts, and not the one that was kept
    with zero.whole_weights():
        assert (model.up.weight == 0.3).all()


def refused(rank: int, folder: Path) -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"weights differs between ranks"):
        partition_states(optimizer, weights=E4M3FN if rank else None)
    with pytest.raises(ValueError, match=r"weights is .*; expected None, E4M3FN"):
        partition_states(optimizer, weights=FP32 if rank else E4M3FN)
    with pytest.raises(ValueError, match=r"a parameter differs between ranks"):
        partition_states(torch.optim.SGD([nn.Parameter(torch.ones(2 + rank))], 0.1))
    with pytest.raises(ValueError, match=r"an option of the optimizer differs between ranks"):
        partition_states(torch.optim.SGD(Small().parameters(), 0.1 * (1 + rank)))
    with pytest.raises(ValueError, match=r"is float64, beyond 8 bits"):
        partition_states(torch.optim.SGD(Small(torch.float64).parameters(), 1), weights=E4M3FN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        zero = partition_states(torch.optim.Adam(model.parameters(), 0.1))
    backward(model, 0)
    with pytest.raises(ValueError, match=r"step\(closure\); expected step\(\) alone"):
        zero.optimizer.step(lambda: 0.0)
    zero.optimizer.step()
    state = zero.optimizer.state_dict()
    states = [None, None]
    dist.all_gather_object(states, state)
    with pytest.warns(UserWarning, match=r"has nothing of \d of the \d tensors of rank"):
        zero.optimizer.load_state_dict(states[1 - rank])
    zero.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match=r"has other parameters than when"):
        zero.optimizer.step()


class Failing(torch.optim.Optimizer):
    """SGD whose step raises after its first parameter, as long as it is told to."""

    fails = False

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                if self.fails:
                    raise RuntimeError("a step that raises")
                parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])


def a_step_that_raises(rank: int, folder: Path) -> None:
    for format in (None, E4M3FN):
        model, oracle = Small(), Small()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            partition_states(optimizer := Failing(model.parameters()), weights=format)
            partition_states(reference := Failing(oracle.parameters()), weights=format)
        backward(model, 0)
        backward(oracle, 0)
        before = [parameter.grad for parameter in model.parameters()]
        optimizer.fails = True
        with pytest.raises(RuntimeError, match="a step that raises"):
            optimizer.step()
        grads = [parameter.grad for parameter in model.parameters()]
        assert all(a is b for a, b in zip(grads, before, strict=True))
        assert_same(model, oracle)  # rounded weights too are those that all ranks computed with
        optimizer.fails = False
        for _ in range(2):
            optimizer.step()
            reference.step()
            assert_same(model, oracle)


def everything(rank: int, folder: Path) -> None:
    a_step_that_raises(rank, folder)
    as_without(rank, folder)
    in_8_bits(rank, folder)
    refused(rank, folder)


def test_two_ranks(tmp_path: Path) -> None:
    work_together(everything, tmp_path)


@pytest.mark.usefixtures("one_rank")
def test_one_rank_owns_all(capsys: pytest.CaptureFixture[str]) -> None:
    model = Small()
    zero = partition_states(torch.optim.AdamW(model.parameters(), 0.01))
    backward(model, 0)
    zero.optimizer.step()
    assert str(zero.report()) == (
        "rank 0 of 1 has the states of 5 tensors, 3,512 of 3,512 elements (largest load 1.00 of "
        "the mean); 0 bytes sent in 1 steps"
    )
    with pytest.raises(ValueError, match=r"are partitioned already; call it once"):
        partition_states(zero.optimizer)
    with pytest.raises(TypeError, match=r"optimizer is a Small; expected a torch.optim.Optimizer"):
        partition_states(model)  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    "copied_by", [copy.copy, copy.deepcopy, pickle.dumps, lambda x: torch.save(x, io.BytesIO())]
)
def test_no_copy_is_made_of_what_is_partitioned(copied_by: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.SGD(Small().parameters(), 0.1)
    copied_by(optimizer)
    zero = partition_states(optimizer)
    for what in (optimizer, zero):
        with pytest.raises(TypeError, match=r"is not copied or pickled, or the copy would step"):
            copied_by(what)
    assert optimizer.state_dict()["param_groups"]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("is_first", [False, True])
def test_schedulers_step_before_and_after(is_first: bool) -> None:
    def schedule() -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = schedule() if is_first else None
    zero = partition_states(optimizer)
    scheduler = scheduler or schedule()
    backward(model, 0)
    optimizer.step()
    scheduler.step()  # warns if it has not seen the step
    assert (zero.report().steps, optimizer.param_groups[0]["lr"]) == (1, 0.05)


@pytest.mark.usefixtures("one_rank")
def test_what_is_not_finite_arrives_as_nan() -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    partition_states(optimizer, weights=E4M3FN)
    backward(model, 0)
    with torch.no_grad():
        model.up.weight[0, 0] = torch.inf
    optimizer.step()
    assert model.up.weight.isnan().all()
    assert model.down.weight.isfinite().all()


def test_the_assertion_fails_on_other_parameters() -> None:
    other = Small()
    with torch.no_grad():
        other.up.weight[0, 0] += 1
    with pytest.raises(AssertionError, match=r"up\.weight"):
        assert_same(Small(), other)
