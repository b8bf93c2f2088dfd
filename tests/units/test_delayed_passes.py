"""Histories of amaxes under unusual backward passes, changes of units, and several processes."""

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import unitscale as us
from processes import work_together
from units.delayed import Layer, amaxes, drawn, recipe, scaled, step
from unitscale.units import apply_recipe, unit_scale
from unitscale.units.forward import session_of

LOST = "a backward pass brought none"


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_a_backward_pass_for_some_tensors_alone_is_warned_of(inner) -> None:
    model = scaled(inner=inner)
    torch.autograd.grad(model(drawn()).sum(), list(model.parameters()))
    with pytest.warns(UserWarning, match=LOST):
        model(drawn())
    assert amaxes(model) == {}
    model(drawn()).sum().backward(inputs=list(model.parameters()))
    assert amaxes(model) == {}  # and once is enough
    model(drawn()).sum().backward()
    assert len(amaxes(model)) == 3


def test_two_backward_passes_of_one_call_are_one_step_with_the_larger_amax() -> None:
    model = scaled()
    x, g = drawn(), drawn(0.5, 1)
    y = model(x)
    y.backward(g, retain_graph=True)
    y.backward(4 * g)
    found = amaxes(model)
    assert found["layer.linear:0"] == [x.abs().max().item()]
    assert found["layer.linear:1"] == [model.layer.weight.abs().max().item()]
    assert found["layer.linear:gradient"] == [4 * g.abs().max().item()]


@pytest.mark.parametrize("how", [apply_recipe, unit_scale])
def test_a_history_is_of_true_values_whatever_the_unit(how) -> None:
    """Steps 0, 1, 2, 4 measure, and after each of them tensors are held at another unit."""
    model = how(Layer(), recipe(history=16), inner="eager")
    sizes = [2.0 ** (3 * index) for index in range(6)]
    for index, size in enumerate(sizes):
        step(model, drawn(size, index), drawn(1 / size, index))
    want = [drawn(size, index).abs().max().item() for index, size in enumerate(sizes)]
    assert amaxes(model)["layer.linear:0"] == want[::-1]
    want = [drawn(1 / size, index).abs().max().item() for index, size in enumerate(sizes)]
    assert amaxes(model)["layer.linear:gradient"] == want[::-1]


def test_units_and_no_units_have_the_same_numerics_under_a_short_history() -> None:
    """Powers of two move no rounding: E4M3FN and E5M2 are relative away from their ends."""
    found = []
    for how in (apply_recipe, unit_scale):
        model = how(Layer(), recipe(history=2), inner="eager")
        found.append([step(model, drawn(2.0**-i, i), drawn(2.0**-i, i + 9)) for i in range(9)][-1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * a.abs().max().item())
    exact = step(Layer(), drawn(2.0**-8, 8), drawn(2.0**-8, 17))
    assert all(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(found[0], exact, strict=True))


def test_amaxes_of_held_values_are_refused() -> None:
    model = scaled(unit_scale)
    step(model, drawn(), drawn())
    held = amaxes(model)
    state = session_of(model).store.state_dict() | {"version": 3, "amaxes": held}
    with pytest.raises(ValueError, match="the amaxes of version 3 are of values as they were held"):
        session_of(model).store.load_state_dict(state)


def run(rank: int, folder: Path) -> None:
    """Three steps in which one process has larger values, and a file of every process and of one.

    The last of them is a measuring step, and nobody has shared what it saw.
    """
    for name, make in (("delayed", lambda: recipe(history=4)), ("fp8", lambda: "fp8")):
        how = apply_recipe if name == "delayed" else unit_scale
        wrapped = DistributedDataParallel(how(Layer(), make(), inner="eager"))
        for index in range(3):
            train(wrapped, index, rank)
        us.save_units(wrapped.module, folder / f"{name}{rank}.json")
        us.share_units(wrapped)
        if rank == 0:
            us.save_units(wrapped.module, folder / f"{name}.json")
        torch.distributed.barrier()
        found = [train(wrapped, 3, rank)]
        for file in (f"{name}{rank}.json", f"{name}.json"):
            again = DistributedDataParallel(how(Layer(), make(), inner="eager"))
            us.load_units(again.module, folder / file)
            found.append(train(again, 3, rank))
            assert state(again.module) == state(wrapped.module)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        torch.save(state(wrapped.module), folder / f"{name}{rank}.pt")


def train(wrapped, index: int, rank: int) -> list[torch.Tensor]:
    wrapped.zero_grad()
    y = wrapped(drawn(1.0 + index + 100.0 * rank * index, index))
    y.backward(drawn(1.0, index + 5))
    return [y.detach().clone(), wrapped.module.layer.weight.grad.clone()]


def state(model) -> tuple:
    store = session_of(model).store
    return dict(store.units), store.amaxes.state(), store.step


def test_a_resumed_process_goes_on_with_what_all_have_measured(tmp_path: Path) -> None:
    work_together(run, tmp_path)
    for name in ("delayed", "fp8"):
        first, second = (torch.load(tmp_path / f"{name}{i}.pt", weights_only=False) for i in (0, 1))
        assert first == second


def test_share_units_does_nothing_alone_and_refuses_a_plain_model() -> None:
    model = scaled()
    step(model, drawn(), drawn())
    us.share_units(model)
    assert len(amaxes(model)) == 3
    with pytest.raises(ValueError, match="share_units"):
        us.share_units(Layer())
