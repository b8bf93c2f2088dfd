"""A summary accounts for every multiply-add: what is not rounded is counted, and says why."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import unitscale as us
from unitscale.units import overview

WIDTH = 8


class Doubled(torch.autograd.Function):
    """A product whose author wrote its backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight * 2

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        return 2 * grad @ weight.T, 2 * x.T @ grad


class Attention(nn.Module):
    """One that stays one op, whose result is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, add_zero_attn=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[None], x[None], x[None])[0][0]


class By(nn.Module):
    """A function of a matrix and the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.matrix = function, nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.matrix)


def in_lanes(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.vmap(lambda row: F.linear(row, matrix))(x)


def of_complex_numbers(x: Tensor, matrix: Tensor) -> Tensor:
    return (torch.complex(x, x) @ matrix.to(torch.complex64)).real


UNCOVERED = {
    "vmap": (lambda: By(in_lanes), "inside vmap"),
    "complex": (lambda: By(of_complex_numbers), "complex"),
    "Function": (lambda: By(Doubled.apply), "runs as it is"),
    "attention": (Attention, "add_zero_attn is set"),
}


class Wrapped(nn.Module):
    """A linear layer, and something else."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(WIDTH, WIDTH), other

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.first(x).tanh()).square().mean()


def counted(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of the plain model, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("build", "why"), UNCOVERED.values(), ids=UNCOVERED)
def test_what_is_not_rounded_is_counted_and_says_why(build, why) -> None:
    x, model = torch.randn(6, WIDTH), Wrapped(build())
    total = counted(model, x)
    us.unit_scale(model, "fp8", inner="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the module that is not captured
        model(x).backward()
    summary = us.summary(model)
    found = [product for product in summary.products if product.why is not None]
    assert sum(p.macs for p in summary.products) + summary.plain_macs == total
    assert summary.coverage == 6 * WIDTH * WIDTH / total < 1
    assert all(why in text for text in [*(p.why for p in found), *summary.plain.values()])
    assert len(found) + len(summary.plain) == 1
    assert why in str(summary)


def test_a_product_in_vmap_is_as_in_the_plain_model_and_its_row_says_so() -> None:
    x = torch.randn(6, WIDTH)
    torch.manual_seed(0)
    plain = By(in_lanes)
    scaled = By(in_lanes)
    scaled.load_state_dict(plain.state_dict())
    us.unit_scale(scaled, "fp8", inner="eager")
    assert torch.equal(scaled(x), plain(x))
    (row,) = (row for row in us.unit_rows(scaled) if row.product is not None)
    assert row.product.by == "full precision"
    assert us.coverage(scaled) == 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_in_one_op_counts_its_matrices(kind) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Linear(WIDTH, WIDTH), kind(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.first(x))[0].square().mean()

    model = us.unit_scale(Model(), "fp8", inner="eager")
    with torch._dynamo.config.patch(allow_rnn=True):
        model(torch.randn(3, 2, WIDTH)).backward()
    gates = model.layer.weight_ih_l0.shape[0] // WIDTH
    # Two square matrices for each gate, beside the one of the linear layer.
    assert us.coverage(model) == 1 / (1 + 2 * gates)
    (product,) = (p for p in us.summary(model).products if p.why is not None)
    assert "recurrent layer" in product.why
    rows = {row.name: row.product for row in us.unit_rows(model)}
    assert any(p is not None and p.why == product.why for p in rows.values())


PRODUCTS = {
    "mv": (lambda x, m: torch.mv(m, x[0]), WIDTH * WIDTH),
    "inner": (lambda x, m: torch.inner(x, m), 6 * WIDTH * WIDTH),
    "outer": (lambda x, m: torch.outer(x[0], m[0]), WIDTH * WIDTH),
    "einsum": (lambda x, m: torch.einsum("i,j->ij", x[0], m[0]), WIDTH * WIDTH),
    "dot": (lambda x, m: torch.dot(x[0], m[0]), WIDTH),
    "bilinear": (lambda x, m: F.bilinear(x, x, m[None]), 6 * WIDTH * WIDTH),
    "attention": (
        lambda x, m: F.scaled_dot_product_attention(x[None], x[None], x[None] * m[0]),
        2 * 6 * 6 * WIDTH,
    ),
    "two vmaps": (lambda x, m: torch.vmap(lambda r: torch.vmap(lambda w: w @ r)(m))(x), 6 * 64),
    "one after another": (lambda x, m: torch.vmap(torch.sin)(x) @ m, 6 * WIDTH * WIDTH),
}


@pytest.mark.parametrize(("function", "macs"), PRODUCTS.values(), ids=PRODUCTS)
def test_products_that_torch_does_not_count_are_counted(function, macs) -> None:
    model = us.unit_scale(By(function), "fp8", inner="eager")
    model(torch.randn(6, WIDTH))
    assert [product.macs for product in us.summary(model).products] == [macs]


def test_a_product_that_is_not_captured_counts_its_matrix_times_the_input() -> None:
    @torch.compiler.disable
    def hidden(x: Tensor, matrix: Tensor) -> Tensor:
        return x @ matrix

    class Model(By):
        def forward(self, *, x: Tensor) -> Tensor:
            return hidden(x, self.matrix) + x @ x.T @ x

    model = us.unit_scale(Model(None), "fp8", inner="eager")
    with pytest.warns(UserWarning, match="could not be captured"):
        model(x=torch.randn(6, WIDTH))
    assert us.summary(model).plain_macs == 6 * WIDTH * WIDTH


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # by Dynamo, at the break
def test_a_graph_that_several_layers_share_counts_for_each_of_them() -> None:
    class Layer(nn.Module):
        """Its graph after the break has no parameter, so both layers run the same one."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            torch._dynamo.graph_break()
            return y @ y.T @ y

    model = nn.Sequential(Layer(), Layer())
    total = counted(model, x := torch.randn(6, WIDTH))
    us.unit_scale(model, "fp8", inner="eager")
    for _ in range(3):
        model(x).square().mean().backward()
        assert sum(product.macs for product in us.summary(model).products) == total
    assert us.coverage(model) == 1


class Between(nn.Module):
    """A product of activations that no module owns, where a graph breaks in a loop."""

    def __init__(self, *, breaks: bool) -> None:
        super().__init__()
        self.layer, self.breaks = nn.Linear(WIDTH, WIDTH), breaks

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            y = self.layer(x)
            if self.breaks:
                torch._dynamo.graph_break()
            x = y @ y.T @ x
        return x


# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("breaks", [False, True])
def test_what_runs_between_graphs_is_said_not_to_be_known(breaks):
    model = us.unit_scale(Between(breaks=breaks), "fp8", inner="eager")
    for _ in range(2):
        model(torch.randn(4, WIDTH))
        found = str(us.summary(model))
        assert ("not known: products of two activations" in found) is breaks
        assert us.coverage(model) == 1.0
    assert bool(us.summary(model).breaks) is breaks


class Unused(nn.Module):
    """It has a parameter of its own that nothing takes, a part that runs and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.used, self.idle = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_parameter_that_is_not_used_is_no_module_that_has_not_run() -> None:
    model = us.unit_scale(Unused(), "fp8", inner="eager")
    model(torch.ones(2, WIDTH)).sum().backward()
    found = us.summary(model)
    assert (found.unseen, found.unused) == (("idle",), ("unused",))
    assert "not used by what has run: unused" in str(found)
    assert "has not run: idle" in str(found)
    assert "the model itself" not in str(found)
    assert ", 1 training call" in str(found).splitlines()[0]
    assert not str(found).splitlines()[0].endswith("calls")


def test_reason_that_comes_twice_is_said_once() -> None:
    assert overview.counted(["Dynamic shape", "other", "Dynamic shape"]) == (
        "Dynamic shape (2 times)",
        "other",
    )
