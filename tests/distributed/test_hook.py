"""The hook is in force, says when it is not, and refuses what it cannot serve."""

import copy
import gc
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import unitscale as us
from distributed.grid import assert_few_bits, gradients, relative_error
from unitscale import nn as unn
from unitscale.distributed import AutomaticScale, CurrentScale, UnitScale, fp8_hook
from unitscale.distributed.hook import exchange_gradients
from unitscale.formats import BF16, E2M1FN, E3M4, E4M3FN, E5M2, E8M0FNU

pytestmark = pytest.mark.usefixtures("one_rank")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 5))


def plain(model: nn.Module, seed: int = 0, factor: float = 1.0) -> Tensor:
    """The same, of the model inside of its wrapper; nobody accumulates them."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))
    inner = model.module
    loss = factor * inner(x).square().mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(inner.parameters()))])


def backward(model: nn.Module, seed: int = 0, factor: float = 1.0) -> Tensor:
    """The gradients of one pass."""
    model.zero_grad()
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))
    (factor * model(x).square().mean()).backward()
    return gradients(model)


def test_assert_few_bits_fails_on_plain_gradients_and_on_zeros() -> None:
    exact = backward(DistributedDataParallel(network()))
    with pytest.raises(AssertionError, match="have more bits than E4M3FN"):
        assert_few_bits(exact, E4M3FN)
    with pytest.raises(AssertionError, match="more bits than E5M2"):
        assert_few_bits(torch.tensor([1.125]), E5M2)
    with pytest.raises(AssertionError, match="all elements are zero"):
        assert_few_bits(torch.zeros(3), E4M3FN)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"bucket_cap_mb": 0.0005},
    ],
    ids=str,
)
def test_every_gradient_of_every_pass_comes_in_8_bits(options, fmt) -> None:
    ddp = DistributedDataParallel(network(), **options)
    wire = fp8_hook(ddp, format=fmt)
    for step in range(4):
        exact = plain(ddp, step)
        found = backward(ddp, step)
        assert_few_bits(found, fmt)
        # One rounding: half a spacing at most, a quarter root of three of it for most elements.
        most = 2.0 ** -(fmt.mantissa_bits + 1)
        assert most / 4 < relative_error(found, exact) < most
    report = wire.report()
    assert report.passes == 4
    assert report.calls >= 4
    assert report.elements == 4 * exact.numel()
    assert report.saturated == report.nonfinite == report.bytes_sent == 0


def test_a_model_called_without_its_wrapper_is_warned_of() -> None:
    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp)
    backward(ddp)
    backward(ddp.module)
    with pytest.warns(UserWarning, match=r"'0.weight' were computed outside of no_sync and not"):
        [backward(ddp.module) for _ in range(2)]
    backward(ddp.module)  # said once
    assert wire.report().passes == 1


def test_a_hook_that_was_never_called_says_so() -> None:
    wire = fp8_hook(DistributedDataParallel(network()))
    assert "has not been called" in str(wire.report())
    assert "has not been called" in repr(wire)


def test_accumulated_gradients_are_exchanged_once() -> None:
    model = network()
    ddp = DistributedDataParallel(model)
    wire = fp8_hook(ddp)
    for step in range(3):
        ddp.zero_grad()
        for part in range(4):
            x = torch.randn(8, 16) * (part + step + 1)
            if part == 3:
                ddp(x).square().mean().backward()
                break
            with ddp.no_sync():
                loss = ddp(x).square().mean()
                if step:
                    loss.backward()
            if not step:  # torch allows that, too
                loss.backward()
        assert_few_bits(gradients(ddp), E4M3FN)
    assert wire.report().passes == 3
    assert wire.report().saturated == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_gradients_of_other_dtypes_keep_theirs(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    ddp = DistributedDataParallel(model)
    fp8_hook(ddp)
    ddp(torch.randn(8, 16, dtype=dtype)).square().mean().backward()
    assert gradients(ddp).dtype == dtype
    assert_few_bits(gradients(ddp), E4M3FN)


class Branches(nn.Module):
    """Uses one of its parts in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 4)])
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[self.turn](x)


def test_a_part_that_is_used_late_is_measured_when_it_is() -> None:
    model = Branches()
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="once"))
    for step in range(6):
        model.turn = int(step > 3)
        backward(ddp, step, factor=1e-6)
        (grad,) = (p.grad for p in [model.parts[model.turn].weight])
        assert_few_bits(grad, E4M3FN)
    assert wire.report().saturated == 0
    assert {name.split(".")[1] for name in wire.state.log2} == {"0", "1"}
    # Passes 0 to 4 measure what had no gradient so far; then nothing is left to measure.
    before = wire.report().scale_exchanges
    backward(ddp, 9, factor=1e-6)
    assert wire.report().scale_exchanges == before


def test_gradients_of_zero_stay_zero() -> None:
    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp)
    for _ in range(3):
        assert not backward(ddp, factor=0.0).any()
    assert wire.state.log2 == {}
    assert wire.report().flushed == 0
    assert_few_bits(backward(ddp), E4M3FN)


def test_saturation_is_counted_warned_of_and_measured_away() -> None:
    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="once"))
    backward(ddp)
    with pytest.warns(UserWarning, match=r"saturated in E4M3FN in pass 1.*measured again in the"):
        backward(ddp, factor=1e4)
    lost = wire.report().saturated
    assert lost > 100
    assert len(wire.state.due) > 0
    exact = plain(ddp, factor=1e4)
    found = backward(ddp, factor=1e4)
    assert relative_error(found, exact) < 0.03
    assert wire.report().saturated == lost
    assert not wire.state.due


def test_given_units_are_never_measured_and_their_saturation_is_warned_of() -> None:
    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="never"))
    with pytest.warns(UserWarning, match="lower target_log2"):
        backward(ddp, factor=1e6)
    assert wire.report().scale_exchanges == 0
    assert wire.state.log2 == {}
    with pytest.raises(ValueError, match="expected a UnitScale that measures"):
        wire.remeasure()


def test_a_grad_scaler_sees_an_overflow_and_scales_stay() -> None:
    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp, scale=UnitScale(remeasure="once"))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, torch.inf, 1.0):
        before = [p.detach().clone() for p in ddp.parameters()]
        log2 = dict(wire.state.log2)
        optimizer.zero_grad()
        scaler.scale(factor * ddp(torch.randn(8, 16)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        is_same = all(map(torch.equal, before, ddp.parameters()))
        assert is_same == (factor == torch.inf)
        assert not log2 or wire.state.log2 == log2
    assert scaler.get_scale() == 2.0
    assert wire.report().nonfinite > 0


def unit_scaled_by_hand() -> nn.Module:
    return nn.Sequential(unn.Linear(16, 33), nn.Tanh(), unn.LinearReadout(33, 5))


@pytest.mark.parametrize(
    ("build", "optimize"),
    [
        (lambda: us.unit_scale(network(), "fp8", inner="eager"), torch.optim.AdamW),
        (lambda: torch.compile(network(), backend="eager"), torch.optim.SGD),
        (unit_scaled_by_hand, us.optim.AdamW),
    ],
    ids=["unit_scale", "compiled", "unn"],
)
def test_it_works_with_units_compiled_models_and_optimizers(build, optimize) -> None:
    model = build()
    ddp = DistributedDataParallel(model)
    wire = fp8_hook(ddp)
    taken = model if optimize is us.optim.AdamW else model.parameters()
    optimizer = optimize(taken, lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (ddp(torch.ones(8, 16)) - 1).square().mean()
        loss.backward()
        assert_few_bits(gradients(ddp), E4M3FN)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert wire.report().passes == 8


def test_the_backward_pass_does_not_wait_for_an_exchange(monkeypatch) -> None:
    wire = fp8_hook(DistributedDataParallel(network()))
    go, exchange = threading.Event(), wire.exchange

    def late(*args: object, **kwargs: object) -> None:
        assert go.wait(60)
        exchange(*args, **kwargs)

    monkeypatch.setattr(wire, "exchange", late)
    parameters = list(wire.names)[:1]
    buffer = torch.randn(parameters[0].numel())
    exact = buffer.clone()
    first = wire.take(0, buffer, parameters, is_last=False)
    second = wire.take(1, buffer.clone(), parameters, is_last=True)
    assert not first.done()
    assert not second.done()
    assert torch.equal(buffer, exact)
    go.set()
    assert_few_bits(first.wait(), E4M3FN)
    assert torch.equal(first.wait(), second.wait())


def test_an_exchange_that_fails_ends_the_backward_pass_with_its_message(monkeypatch) -> None:
    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp)

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the connection was closed by a peer")

    monkeypatch.setattr(wire, "exchange", fails)
    with pytest.raises(
        RuntimeError, match="running the callback: RuntimeError: the connection was"
    ):
        backward(ddp)


def test_a_copy_without_the_hook_is_refused_and_one_of_the_module_is_not() -> None:
    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp)
    backward(ddp)
    for attempt in (copy.deepcopy, pickle.dumps):
        for one in (ddp, wire):
            with pytest.raises(TypeError, match=r"not copied or pickled.*copy its `module`"):
                attempt(one)
        attempt(ddp.module)


def test_no_thread_outlives_the_model() -> None:
    def threads() -> int:
        return sum("unitscale-gradients" in t.name for t in threading.enumerate() if t.is_alive())

    ddp = DistributedDataParallel(network())
    wire = fp8_hook(ddp)
    backward(ddp)
    workers = [t for t in threading.enumerate() if "unitscale-gradients" in t.name]
    assert threads() == len(workers) == 1
    del ddp, wire
    gc.collect()
    workers[0].join(30)
    assert threads() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "fp8"}, "format is fp8; expected E4M3FN or E5M2"),
        ({"format": BF16}, "format is BF16; expected E4M3FN"),
        ({"format": E8M0FNU}, "format is E8M0FNU"),
        ({"format": E3M4}, "format is E3M4"),
        ({"format": E2M1FN}, "format is E2M1FN"),
        ({"mean_format": E5M2}, "mean_format is E5M2; expected BF16, or None for E4M3FN"),
        ({"scale": "unit"}, "scale is 'unit'; expected a UnitScale"),
        ({"scale": UnitScale(target_log2=8)}, r"2\*\*8 in E4M3FN, whose largest value is 448"),
        ({"rounding": "up"}, "rounding is 'up'; expected 'nearest' or 'stochastic'"),
        ({"seed": 1.5}, "seed is 1.5; expected an int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_bad_option_is_one_clear_error_and_changes_nothing(options, message) -> None:
    ddp = DistributedDataParallel(network())
    with pytest.raises(ValueError, match=message):
        fp8_hook(ddp, **options)
    fp8_hook(ddp)  # torch takes one hook alone
    assert_few_bits(backward(ddp), E4M3FN)


def test_what_is_no_ddp_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model is a Sequential; expected a DistributedDataPara"):
        fp8_hook(network())


def test_a_second_hook_is_refused() -> None:
    ddp = DistributedDataParallel(network())
    fp8_hook(ddp)
    with pytest.raises(ValueError, match="a model takes one communication hook"):
        fp8_hook(ddp, scale=CurrentScale())
    assert_few_bits(backward(ddp), E4M3FN)


def test_parameters_that_do_not_serve_are_refused_by_name() -> None:
    class Holder(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, dtype=dtype))

    ddp = DistributedDataParallel(Holder(torch.complex64))
    with pytest.raises(ValueError, match=r"parameter 'w' is torch.complex64; expected float32"):
        fp8_hook(ddp)
    model = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="0 has sparse gradients; expected dense ones"):
        fp8_hook(DistributedDataParallel(model))
    ddp = DistributedDataParallel(network())
    ddp.module.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        fp8_hook(ddp)


def test_gradients_that_do_not_serve_are_refused_when_they_come() -> None:
    wire = fp8_hook(DistributedDataParallel(network()))
    with pytest.raises(TypeError, match=r"a gradient is torch\.sparse_coo; expected a dense one"):
        wire.take(0, torch.eye(2).to_sparse(), [], is_last=True)
    with pytest.raises(TypeError, match=r"handed over a tuple and no bucket.*python_reducer"):
        exchange_gradients(wire, (torch.ones(2), None))


def test_scales_are_saved_and_loaded_whole() -> None:
    model = network()
    wire = fp8_hook(ddp := DistributedDataParallel(model), scale=AutomaticScale())
    for step in range(3):
        backward(ddp, step)
    state = wire.state_dict()
    other_ddp = DistributedDataParallel(copy.deepcopy(model))
    other = fp8_hook(other_ddp, scale=AutomaticScale(), seed=3)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert state["passes"] == 3
    assert torch.equal(backward(ddp, 7), backward(other_ddp, 7))
    kept = other.state_dict()
    for change, message in [
        ({"version": 9}, "version is 9; expected 1"),
        ({"format": "E5M2"}, "format is 'E5M2'; expected 'E4M3FN'"),
        ({"scale": str(UnitScale())}, r'scale is "UnitScale\(target_log2=2'),
        ({"log2": {"7.weight": 2.0}}, "scales of '7.weight'; the model has no such parameter"),
        ({"more": 1}, "no state_dict of a GradientWire"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict({**state, **change})
    assert other.state_dict() == kept
