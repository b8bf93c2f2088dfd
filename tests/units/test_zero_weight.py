"""A weight that starts at zero: it has no size, so its unit is set once it has one."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from unitscale.graph.place import Places
from unitscale.units.assign import Unit
from unitscale.units.forward import session_of
from unitscale.units.reading import Reading
from unitscale.units.store import ATTEMPTS, UnitStore


class Adapted(nn.Module):
    """A layer with an adapter of low rank, whose second matrix is zero at first."""

    def __init__(self, *, is_zero: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
        self.a, self.b = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)
        if is_zero:
            nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x) + self.b(self.a(x)))


def steps(model: nn.Module, count: int, *, lr: float = 1e-4) -> list[float]:
    """The losses of so many steps."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 16, 32, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("remeasure", ["geometric", "once", [0, 8]])
def test_what_was_zero_is_measured_before_it_is_rounded(remeasure):
    model = us.unit_scale(Adapted(), "fp8", remeasure=remeasure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what went to zero
        steps(model, 3)
    session = session_of(model)
    session.terms.collect()
    assert session.store.units["b.weight"].s < -10  # of about 1e-4
    assert session.store.readings["b.weight"].flushed < 0.01
    assert session.store.readings["a.linear"].grad_flushed < 0.25
    assert not {("s", "b.weight"), ("phi", "a.linear")} & session.store.zero


def test_a_weight_that_stays_zero_is_not_measured_for_ever():
    model = us.unit_scale(Adapted(), "fp8", remeasure="once")
    steps(model, 2, lr=0.0)
    store = session_of(model).store
    session_of(model).terms.collect()
    versions = []
    for _ in range(3):
        steps(model, 1, lr=0.0)
        session_of(model).terms.collect()
        versions.append(store.version)
    assert len(set(versions)) == 1


def test_a_frozen_weight_of_zeros_asks_for_nothing():
    model = Adapted()
    model.b.weight.requires_grad_(False)
    steps(us.unit_scale(model, "fp8", remeasure="once"), 1)
    session_of(model).terms.collect()
    assert not session_of(model).store.requested


def test_without_zeros_nothing_is_asked_for_and_saved():
    model = us.unit_scale(Adapted(is_zero=False), "fp8", remeasure="once")
    steps(model, 2)
    session_of(model).terms.collect()
    assert not session_of(model).store.requested
    assert "zero" not in session_of(model).store.state_dict()


@pytest.mark.parametrize("remeasure", ["geometric", "once"])
@pytest.mark.parametrize(
    ("micro_batches", "without_rate", "frozen"),
    [(3, 0, 0), (9, 0, 0), (1, 9, 0), (1, 0, 6)],
    ids=["3 micro-batches", "9 micro-batches", "rate of 0 first", "frozen first"],
)
def test_whenever_it_changes_the_next_call_measures(remeasure, micro_batches, without_rate, frozen):
    model = us.unit_scale(Adapted(), "fp8", remeasure=remeasure)
    weight = model.b.weight.requires_grad_(frozen == 0)
    x, y = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    checked = 0
    for call in range(24):
        weight.requires_grad_(call >= frozen)
        loss = (model(x) - y).square().mean()
        (found,) = torch.autograd.grad(loss, model.a.weight, retain_graph=True)
        loss.backward()
        if weight.any():
            checked += 1
            with us.full_precision(model):
                (exact,) = torch.autograd.grad((model(x) - y).square().mean(), model.a.weight)
            # Rounding costs some percent here; at a unit of 1 the whole gradient is flushed: 1.
            assert (found - exact).norm() < 0.3 * exact.norm(), call
        if (call + 1) % micro_batches == 0:
            optimizer.param_groups[0]["lr"] = 1e-4 if call >= without_rate else 0.0
            optimizer.step()
            optimizer.zero_grad()
    assert checked > 3


def wakes(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """After a change of `b.weight` the next training call has the gradient of what is before it."""
    with torch.no_grad():
        model.b.weight += 1e-4 * torch.randn_like(model.b.weight)
    loss = (model(x) - y).square().mean()
    (found,) = torch.autograd.grad(loss, model.a.weight)
    with us.full_precision(model):
        (exact,) = torch.autograd.grad((model(x) - y).square().mean(), model.a.weight)
    assert (found - exact).norm() < 0.3 * exact.norm()


class Looped(Adapted):
    """Its layers are called in a loop that breaks the graph, so that each has one of its own."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in [self.layer]:
            x = layer(x)
            torch._dynamo.graph_break()
        return self.last(x + self.b(self.a(x)))


def forward_alone(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        model.b.weight += 1e-4
    model.eval()(x)  # with gradients, and without a backward pass
    model.train()


def with_a_nan(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        model.b.weight += 1e-4
    (model(x * torch.nan) - y).square().mean().backward()
    model.zero_grad()


def other_recipe(model: nn.Module, x: Tensor, y: Tensor) -> None:
    us.set_recipe(model, "fp8")


def frozen(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.b.weight.requires_grad_(False)


def without_what_is_before(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        model.b.weight += 1e-4
    model.a.weight.requires_grad_(False)
    (model(x) - y).square().mean().backward()
    model.a.weight.requires_grad_(True)


def masked(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        model.b.weight += 1e-4
    ((model(x) - y).square().mean() * 0).backward()


def evaluated(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        model.b.weight += 1e-4
        model(x)


@pytest.mark.filterwarnings("ignore:units were not measured")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("recipe", "make", "between"),
    [
        ("fp8", Adapted, forward_alone),
        ("fp8", Adapted, with_a_nan),
        ("fp8", Adapted, frozen),
        ("fp8", Adapted, without_what_is_before),
        ("fp8", Adapted, masked),
        ("fp8", Adapted, evaluated),
        ("fp32-units", Adapted, other_recipe),
        ("fp8", Looped, frozen),
    ],
)
def test_nothing_between_keeps_it_from_being_measured(recipe, make, between):
    model = us.unit_scale(make(), recipe, remeasure="once")
    x, y = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    (model(x) - y).square().mean().backward()
    model.zero_grad()
    between(model, x, y)
    wakes(model, x, y)
    (model(x) - y).square().mean().backward()
    model(x)
    for _ in range(17):  # where something else stays zero, it does not measure for ever
        if not session_of(model).store.woken:
            break
        (model(x) - y).square().mean().backward()
        session_of(model).terms.collect()
    assert not session_of(model).store.woken


def test_an_evaluation_sees_weights_that_were_loaded_over_zeros():
    model = us.unit_scale(Adapted(), "fp8").eval()
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(x)
        model.b.weight += 0.01 * torch.randn_like(model.b.weight)
        after = model(x)
        again = model(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, again)
    assert session_of(model).store.units["b.weight"].s < -4  # of 0.01


def test_an_evaluation_looks_once_at_what_stays_zero():
    class Two(Adapted):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Linear(32, 32, bias=False)
            nn.init.zeros_(self.c.weight)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.c(x)

    model = us.unit_scale(Two(), "fp8").eval()
    store, x = session_of(model).store, torch.randn(16, 32)
    with torch.no_grad():
        model(x)
        model.b.weight += 0.01
        versions = [(model(x), store.version)[1] for _ in range(3)]
    assert len(set(versions)) == 1
    assert ("s", "c.weight") in store.zero
    assert store.woken  # training has not measured yet


@pytest.mark.parametrize("recipe", ["fp8", "fp8-e4m3", "fp16"])
def test_zeros_on_a_measuring_step_leave_the_units_that_are_known(recipe):
    model = us.unit_scale(Adapted(is_zero=False), recipe, remeasure=[0, 2])
    x, y = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    gradients, units = [], []
    for kept in (1.0, 1.0, 0.0, 1.0):
        model.zero_grad()
        ((model(x) - y).square() * kept).mean().mul(1e-4).backward()
        gradients.append(model.a.weight.grad.clone())
        session_of(model).terms.collect()
        units.append(dict(session_of(model).store.units))
    assert not gradients[2].any()
    assert torch.equal(gradients[3], gradients[1])
    assert gradients[3].any()
    assert units[3] == units[1]
    rows = {row.name: row for row in us.unit_rows(model)}
    assert rows["a.linear"].grad_rms == 0
    assert rows["a.linear"].phi > 2**8
    assert rows["a.linear"].reason is None


def test_a_gradient_that_never_came_on_a_measuring_step_leaves_its_unit():
    store = UnitStore(scale=True)
    store.adopt({"x": Reading(rms=8.0, grad_rms=2.0**-9)}, training=True)
    for rms, grad_rms in [(0.0, 0.0), (None, None), (2.0**-120, 2.0**-120)]:
        store.adopt({"x": Reading(rms=rms, grad_rms=grad_rms)}, training=True)
        assert store.units["x"] == Unit(3, 9)
    store.adopt({"x": Reading(rms=4.0, grad_rms=0.0)}, training=True)
    assert store.units["x"] == Unit(2, 9)
    # Fill values alone have no RMS, and a small s would make infinities of them.
    store.adopt({"y": Reading(rms=2.0**-9, grad_rms=1.0)}, training=True)
    store.adopt({"y": Reading(rms=0.0, amax=1e38, grad_rms=1.0)}, training=True)
    assert store.units["y"].s == 0


class Routed(nn.Module):
    """A layer, and an expert beside it that some calls do not reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.expert = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        return self.layer(x) + self.expert(x) * share


@pytest.mark.parametrize("first", [3, 4], ids=["between two looks", "at a look"])
def test_what_was_lost_for_want_of_a_unit_is_told(first):
    model = us.unit_scale(Routed(), "fp8", remeasure=[0, 4])
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    lost = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(6):
            model.zero_grad()
            loss = model(x, torch.tensor(float(call >= first))).square().mean()
            loss.mul(1e-7).backward()
            lost.append(not model.expert.weight.grad.any())
    told = [str(w.message) for w in caught if "'expert.linear'" in str(w.message)]
    assert lost == [call < max(first, 4) for call in range(6)]  # at 4 its unit is set
    assert len(told) == 1
    assert "gradient (backward pass)" in told[0]
    assert "100.0% went to zero" in told[0]


def test_without_a_model_nothing_is_looked_at():
    assert not Places(None).changed(["weight"])
    assert not Places(nn.Linear(2, 2)).changed(["gone", "gone.weight"])


def test_a_restart_remembers_what_was_zero():
    store = UnitStore(scale=True)
    store.parameters = {"w", "bias"}
    of_zeros = {
        "w": Reading(rms=0.0, grad_rms=1.0, ceiling=224.0),
        "y": Reading(rms=1.0, grad_rms=0.0, grad_ceiling=28672.0),
        "bias": Reading(rms=0.0, grad_rms=1.0),  # which no product rounds
    }
    store.adopt(of_zeros, training=True)
    assert store.state_dict()["zero"] == [["phi", "y"], ["s", "w"]]
    assert store.state_dict()["asleep"] == ["bias", "w"]
    other = UnitStore(scale=True)
    other.load_state_dict(store.state_dict())
    assert (other.zero, other.asleep) == (store.zero, store.asleep)
    other.adopt({"w": Reading(rms=1.0, grad_rms=1.0, ceiling=224.0)}, training=True)
    assert other.zero == {("phi", "y")}
    assert other.asleep == {"bias"}
    with pytest.raises(ValueError, match="units: 'asleep' is"):
        other.load_state_dict(store.state_dict() | {"asleep": "w"})
    for wrong in ("w", [["s"]], [["x", "w"]], [[1, 2]]):
        with pytest.raises(ValueError, match="units: 'zero' is"):
            other.load_state_dict(store.state_dict() | {"zero": wrong})
    assert other.zero == {("phi", "y")}


def test_the_graphs_of_one_call_are_one_attempt():
    store = UnitStore(scale=True)
    never = {"y": Reading(rms=1.0, grad_rms=0.0, grad_ceiling=28672.0)}
    store.adopt(never, training=True)
    store.wake({"w"})
    for _ in range(2 * ATTEMPTS):
        store.adopt(never, training=True, call=1)
    assert store.woken
    for call in range(2, ATTEMPTS + 1):
        assert store.woken
        store.adopt(never, training=True, call=call)
    assert not store.woken
