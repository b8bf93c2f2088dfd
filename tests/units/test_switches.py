"""What turns a recipe off, on or into another one, and what a model says of it."""

from threading import Event, Thread

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitscale as us
from units.training import named
from unitscale.units import apply_recipe, unit_scale
from unitscale.units.forward import session_of

# These plain models take a recipe of units as one written unit-scaled would: cast as it is.
pytestmark = pytest.mark.filterwarnings("ignore:.*rounds tensors at their units")


class Block(nn.Module):
    def __init__(self, width: int = 8, inner: int = 24) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x * 3)
        return self.head(x)


def batch(scale: float = 1.0) -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * scale


def made(scaler=None, recipe: str = "fp8", **options) -> Model:
    torch.manual_seed(0)
    model = Model()
    return model if scaler is None else scaler(model, recipe, **{"inner": "eager"} | options)


def train(model: nn.Module, steps: int) -> None:
    for _ in range(steps):
        model.zero_grad()
        model(batch()).square().mean().backward()


SCALERS = [unit_scale, apply_recipe]


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_unscale_gives_the_plain_model_back(scaler, steps):
    plain = made()
    before = {path: set(vars(m)) for path, m in plain.named_modules()}
    model = made(scaler)
    train(model, steps)
    model.zero_grad()
    assert us.unscale(model) is model
    assert {path: set(vars(m)) for path, m in model.named_modules()} == before
    assert all("_compiled_call_impl" not in vars(m) for m in model.modules())
    assert str(model) == str(plain)
    for net in (model, plain):
        net.zero_grad()
        net(batch()).square().mean().backward()
    assert torch.equal(model(batch()), plain(batch()))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert session_of(model) is None


def test_unscale_of_a_plain_model_changes_nothing():
    model = made()
    assert us.unscale(model) is model
    assert set(vars(model)) == set(vars(made()))


def test_unscale_keeps_a_forward_that_the_instance_had():
    model = made()
    model.forward = lambda x: model.head(x) * 2
    want = model(batch())
    unit_scale(model, "fp32-units", inner="eager")
    assert torch.equal(model(batch()), want)
    us.unscale(model)
    assert torch.equal(model(batch()), want)
    assert model.__dict__["forward"](batch()).shape == (6, 4)


def test_unscaled_model_can_be_scaled_again():
    model = made(unit_scale)
    want = model(batch()).detach()
    us.unscale(model)
    unit_scale(model, "fp8", inner="eager")
    assert torch.equal(model(batch()), want)
    assert us.coverage(model) == 1.0


def test_set_recipe_keeps_units_and_schedule():
    model = made(unit_scale, "fp32-units")
    train(model, 3)
    before = dict(session_of(model).store.units)
    exact = model(batch()).detach()
    assert us.set_recipe(model, "fp8") is model
    store = session_of(model).store
    assert store.units == before
    assert store.step == 3 + 1  # the call above
    rounded = model(batch()).detach()
    assert not torch.equal(rounded, exact)
    us.set_recipe(model, "fp32-units")
    assert torch.equal(model(batch()), exact)


def test_set_recipe_lets_units_follow_the_model():
    """However many calls there were before: its measurements are later ones."""
    model = made(unit_scale, "fp32-units")
    train(model, 9)
    us.set_recipe(model, "fp32-units")
    us.recalibrate(model)
    assert session_of(model).store.units["blocks.0.up.linear"].s < 3
    model(batch(1000.0)).square().mean().backward()
    assert named(model)["blocks.0.up.linear"].s > 500


@pytest.mark.parametrize("recipe", ["fp9", "fp8-fp8"])
def test_set_recipe_refuses_and_changes_nothing(recipe):
    model = made(unit_scale)
    session, want = session_of(model), model(batch())
    with pytest.raises(ValueError, match=f"unknown recipe '{recipe}'"):
        us.set_recipe(model, recipe)
    assert session_of(model) is session
    assert torch.equal(model(batch()), want)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: us.set_recipe(m, "fp8"),
        us.summary,
        us.coverage,
        us.unit_rows,
        us.recalibrate,
        lambda m: us.full_precision(m).__enter__(),
    ],
)
def test_a_plain_model_is_refused_by_what_needs_a_recipe(call):
    with pytest.raises(ValueError, match=r"this Model has no units; call us.unit_scale"):
        call(made())


@pytest.mark.parametrize("scaler", SCALERS)
def test_full_precision_is_the_plain_model_for_a_while(scaler):
    model, plain = made(scaler), made()
    train(model, 2)
    step, units = session_of(model).store.step, dict(session_of(model).store.units)
    rounded = model(batch()).detach()
    with us.full_precision(model):
        with us.full_precision(model):
            assert torch.equal(model(batch()), plain(batch()))
        assert torch.equal(model(batch(7.0)), plain(batch(7.0)))
        assert torch.equal(model.blocks[0](batch()), plain.blocks[0](batch()))
    assert torch.equal(model(batch()), rounded)
    assert session_of(model).store.step == step + 2
    assert session_of(model).store.units == units


def test_full_precision_ends_with_an_exception_too():
    model, plain = made(unit_scale), made()
    with pytest.raises(KeyError), us.full_precision(model):
        raise KeyError
    assert not torch.equal(model(batch()), plain(batch()))


def test_full_precision_is_of_the_thread_that_asked():
    """One thread evaluates in full precision, say, while another one trains."""
    model, inside, done = made(unit_scale), Event(), Event()
    want, rounded, found = made()(batch()), model(batch()), []

    def evaluate() -> None:
        with us.full_precision(model):
            inside.set()
            done.wait(60)
            found.append(model(batch()))

    thread = Thread(target=evaluate)
    thread.start()
    assert inside.wait(60)
    assert torch.equal(model(batch()), rounded)
    with us.full_precision(model):
        assert torch.equal(model(batch()), want)
    done.set()
    thread.join()
    assert torch.equal(found[0], want)
    assert not torch.equal(rounded, want)
    assert not session_of(model).aside_in


def test_full_precision_holds_in_a_backward_pass_that_computes_a_checkpoint_again():
    model, plain = made(unit_scale), made()
    losses = []
    for one in (model, plain):
        with us.full_precision(model):
            loss = checkpoint(one, batch(), use_reentrant=False).square().mean()
            loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_second_derivatives_are_refused_by_name_and_possible_in_full_precision():
    model, plain = made(unit_scale, "fp32-units"), made()
    penalties = []
    for _ in range(4):  # measuring steps and others
        x = batch().requires_grad_()
        with pytest.raises(RuntimeError, match=r"second derivative.*us\.full_precision"):
            torch.autograd.grad(model(x).sum(), x, create_graph=True)
    for net in (model, plain):
        x = batch().requires_grad_()
        with us.full_precision(model):
            (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
            grad.square().sum().backward()
        penalties.append(x.grad)
    assert torch.equal(*penalties)


def test_print_says_the_recipe_in_one_line():
    model = made(unit_scale)
    assert "(recipe): fp8, 0 units" in str(model)
    train(model, 1)
    (line,) = (line for line in str(model).splitlines() if "recipe" in line)
    count = us.summary(model).units
    assert line.strip() == f"(recipe): fp8, {count} units"
    assert [x for x in str(model).splitlines() if "recipe" not in x] == str(made()).splitlines()


def test_print_keeps_what_the_model_says_itself():
    class Named(Model):
        def extra_repr(self) -> str:
            return "width=8"

    model = apply_recipe(Named(), "fp8", inner="eager")
    assert "width=8" in str(model)
    assert "(recipe): fp8" in str(model)
    us.unscale(model)
    assert "recipe" not in str(model)


MACS = {"up": 6 * 8 * 24, "down": 6 * 24 * 8, "head": 6 * 8 * 4}
TOTAL = 2 * (MACS["up"] + MACS["down"]) + MACS["head"]


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), 0),
        (("head",), MACS["head"]),
        (("blocks.0",), MACS["up"] + MACS["down"]),  # a module, with all that is inside of it
        (("blocks.*.up",), 2 * MACS["up"]),
        (("blocks.*.*",), 2 * (MACS["up"] + MACS["down"])),
    ],
    ids=str,
)
@pytest.mark.parametrize("scaler", SCALERS)
def test_coverage_is_the_share_of_multiply_adds(scaler, skip, left):
    model = made(scaler, skip=skip)
    assert us.coverage(model) == 0.0  # nothing has run yet
    model(batch())
    assert us.coverage(model) == pytest.approx(1 - left / TOTAL, abs=1e-12)
    rows = {name: row.product for name, row in named(model).items() if row.product is not None}
    assert len(rows) == 5
    skipped = [str(found) for found in rows.values() if found.why is not None]
    assert all("full precision: skip=" in text for text in skipped)


def test_recipe_that_rounds_nothing_covers_nothing():
    model = made(unit_scale, "fp32-units")
    model(batch())
    assert us.coverage(model) == 0.0
    assert "recipe fp32-units rounds nothing" in str(us.summary(model))


def test_summary_says_products_units_and_steps():
    model = made(unit_scale, skip=["head"])
    assert "nothing has run yet" in str(us.summary(model))
    train(model, 2)
    found = us.summary(model)
    assert (found.model, found.recipe, found.steps) == ("Model", "fp8", 2)
    assert found.units == sum(row.reason is None for row in us.unit_rows(model)) > 10
    by_name = {product.name: product for product in found.products}
    assert {name.split(".")[-2]: p.macs for name, p in by_name.items()} == MACS
    first, *lines = str(found).splitlines()
    share = 1 - MACS["head"] / TOTAL
    assert first == (
        f"Model, recipe fp8: {share:.1%} of multiply-adds rounded, {found.units} tensors with a "
        "unit, 2 training calls"
    )
    assert any(
        "4 products" in line and "E4M3FN unit, gradients E5M2 unit" in line for line in lines
    )
    assert any("1 products" in line and "skip='head' (head.linear)" in line for line in lines)


def test_summary_names_what_has_not_run():
    class Spare(Model):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(8, 8)

    model = unit_scale(Spare(), "fp8", inner="eager")
    model(batch())
    assert us.summary(model).unseen == ("spare",)
    assert "has not run: spare" in str(us.summary(model))


def test_a_scaled_child_is_named_where_the_module_around_it_is_asked(tmp_path):
    around = nn.Module()
    around.net = made(unit_scale)
    for name, call in (
        ("summary", us.summary),
        ("summary", us.coverage),
        ("units", us.unit_rows),
        ("save_units", lambda model: us.save_units(model, tmp_path / "units.json")),
        ("recalibrate", us.recalibrate),
    ):
        message = rf"^{name}: this Module has no units of its own, but its 'net' has; .*\('net'\)$"
        with pytest.raises(ValueError, match=message):
            call(around)
    assert list(tmp_path.iterdir()) == []
