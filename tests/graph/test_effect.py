"""What ops do to their argument and to a gradient: in-place forms and reductions, to the bit."""

import inspect
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from units.training import assert_trains_as_plain
from unitscale.graph.effect import (
    EFFECTS,
    FROM_RESULT,
    IN_PLACE_OPERATORS,
    MAY_DO_NOTHING,
    METHODS,
    effect_of,
    inplace_slot,
    writes_input,
)


class Through(nn.Module):
    """A function between two layers whose tensors are far from unit scale."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.first(x) * 3)
        return self.second(y.reshape(-1, 16)).square().mean() * 1e-3


def has_inplace(function) -> bool:
    try:
        return "inplace" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def functions_with_inplace() -> dict[str, object]:
    found = {}
    for name in sorted(dir(F)):
        function = getattr(F, name)
        is_public = not name.startswith(("_", "boolean", "multi", "lp_"))
        if is_public and callable(function) and has_inplace(function):
            found[name] = function
    return found


IN_PLACE = functions_with_inplace()
ARGUMENTS = {"threshold": (0.5, -1.0)}
CHANNELS = ("dropout2d", "dropout3d", "feature_alpha_dropout")


def in_place(name: str):
    function, args = IN_PLACE[name], ARGUMENTS.get(name, ())

    def call(x: Tensor) -> Tensor:
        if name in CHANNELS:
            x = x.view(2, -1, 4, 4) if name != "dropout3d" else x.view(2, -1, 2, 2, 4)
        options = {"training": True} if "training" in signature else {}
        return function(x + 0.5, *args, inplace=True, **options)

    signature = inspect.signature(function).parameters
    return call


def draw() -> tuple[Tensor]:
    return (torch.randn(32, 8, generator=torch.Generator().manual_seed(0)),)


def test_functions_with_an_inplace_argument_were_found() -> None:
    assert {"elu", "celu", "selu", "relu6", "dropout", "threshold", "rrelu"} <= IN_PLACE.keys()
    assert len(IN_PLACE) >= 18


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_function_in_place_trains_as_the_plain_one(name) -> None:
    assert_trains_as_plain(lambda: Through(in_place(name)), draw(), steps=4)


@pytest.mark.parametrize("name", sorted(FROM_RESULT))
def test_a_function_in_place_can_be_compiled(name) -> None:
    """What stands in its place is a function with a name that printed code can call."""
    make = lambda: Through(in_place(name))
    assert_trains_as_plain(make, draw(), steps=2, plain="aot_eager", inner="aot_eager")


@pytest.mark.parametrize("name", sorted(FROM_RESULT))
def test_a_function_from_its_result_differs_in_place(name) -> None:
    """The negative: their rows say something; without them the last bit would be another."""
    function, grads = IN_PLACE[name], []
    for inplace in (True, False):
        x = torch.linspace(-3, 3, 1000, requires_grad=True)
        function(x + 0, inplace=inplace).sum().backward()
        grads.append(x.grad)
    assert not torch.equal(*grads)
    torch.testing.assert_close(*grads)  # the same function


@pytest.mark.parametrize("name", sorted(IN_PLACE.keys() - FROM_RESULT - {"rrelu"}))
def test_the_other_functions_do_not(name) -> None:
    grads = []
    for inplace in (True, False):
        torch.manual_seed(0)
        x = torch.linspace(-3, 3, 1024, requires_grad=True)
        y = (x + 0).view(2, 4, 2, 8, 8)
        y = y if name == "dropout3d" else y.flatten(0, 1)
        y = y.flatten(2) if name == "dropout1d" else y
        options = (
            {"training": True} if "training" in inspect.signature(IN_PLACE[name]).parameters else {}
        )
        IN_PLACE[name](y, *ARGUMENTS.get(name, ()), inplace=inplace, **options).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


REDUCTIONS = {
    "cummax": lambda x: x.cummax(-1).values,
    "cummin": lambda x: x.cummin(-1).values,
    "cumprod": lambda x: (x * 0.1 + 1).cumprod(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "torch.logcumsumexp": lambda x: torch.logcumsumexp(x, 0),
    "cumulative_trapezoid": lambda x: F.pad(torch.cumulative_trapezoid(x, dim=-1), (1, 0)),
    "diff": lambda x: F.pad(x.diff(dim=-1), (1, 0)),
    "logsumexp": lambda x: x - x.logsumexp(-1, keepdim=True),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(-1)),
    "logaddexp2": lambda x: torch.logaddexp2(x, x.flip(-1)),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsigmoid": F.logsigmoid,
    "softmin": lambda x: F.softmin(x, -1),
    "prod": lambda x: x * (x * 0.1 + 1).prod(-1, keepdim=True),
    "std": lambda x: x / x.std(-1, keepdim=True),
    "var": lambda x: x * x.var(-1, keepdim=True),
    "var_mean": lambda x: x * torch.var_mean(x, -1, keepdim=True)[0],
    "norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "norm_1": lambda x: x / torch.linalg.vector_norm(x, 1, -1, keepdim=True),
    "norm_inf": lambda x: x / torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "amax": lambda x: x - x.amax(-1, keepdim=True),
    "median": lambda x: x - x.median(-1, keepdim=True).values,
    "mode": lambda x: x - x.mode(-1, keepdim=True).values,
    "quantile": lambda x: x - x.quantile(0.3, -1, keepdim=True),
    "kthvalue": lambda x: x - x.kthvalue(3, -1, keepdim=True).values,
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(16, -1).values,
    "nansum": lambda x: x * x.nansum(-1, keepdim=True),
    "nanmean": lambda x: x * x.nanmean(-1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=-1) + x.sin() * x,
    "softsign": lambda x: F.softsign(x) + x.sin() * x,
    "tanhshrink": lambda x: F.tanhshrink(x) * x + x.sin(),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(0))[:, None] * x,
    "local_response_norm": lambda x: F.local_response_norm(x[:, None], 3)[:, 0] + x.sin() * x,
    "diff and more": lambda x: F.pad(x.diff(dim=-1), (1, 0)) * x + x.sin(),
    "trapezoid": lambda x: x * torch.trapezoid(x, dim=-1)[:, None],
    "lgamma": lambda x: (x.abs() + 1).lgamma(),
    "digamma": lambda x: (x.abs() + 1).digamma(),
    "polygamma": lambda x: torch.polygamma(1, x.abs() + 1),
    "mvlgamma": lambda x: torch.mvlgamma(x.abs() + 2, 2),
    "erfinv": lambda x: torch.erfinv(x.tanh() * 0.9),
    "xlogy": lambda x: torch.xlogy(x, x.abs() + 1),
    "xlog1py": lambda x: torch.special.xlog1py(x, x.abs()),
    "i0": torch.special.i0,
    "i1e": torch.special.i1e,
    "log_ndtr": torch.special.log_ndtr,
    "ndtri": lambda x: torch.special.ndtri(x.sigmoid()),
    "entr": lambda x: torch.special.entr(x.sigmoid()),
    "sinc": torch.sinc,
    "logit": lambda x: x.sigmoid().logit(eps=1e-6),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(x.view(-1, 4, 4) * 0.1),
    "logdet": lambda x: (x.view(-1, 4, 4) * 0.01 + torch.eye(4)).logdet()[:, None] * x,
    "slogdet": lambda x: torch.linalg.slogdet(x.view(-1, 4, 4))[1][:, None] * x,
    "inv": lambda x: torch.linalg.inv(x.view(-1, 4, 4) + 30 * torch.eye(4)),
    "cholesky": lambda x: torch.linalg.cholesky(
        x.view(-1, 4, 4) @ x.view(-1, 4, 4).mT + torch.eye(4)
    ),
    "segment": lambda x: x * torch.segment_reduce(x, "max", lengths=torch.full((32,), 1)),
    "polar": lambda x: torch.polar(x.abs(), x).real,
    "fft": lambda x: torch.fft.fft(x).abs(),
    "sgn": torch.sgn,
    "sign": lambda x: x.sign() * 3,
    "pdist": lambda x: x * F.pdist(x).sum(),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction_trains_as_the_plain_one(name) -> None:
    assert_trains_as_plain(lambda: Through(REDUCTIONS[name]), draw(), steps=2)


@pytest.mark.parametrize("name", ["logcumsumexp", "matrix_exp"])
def test_a_backward_that_is_not_linear_is_not(name) -> None:
    """The negative of `linear_backward`: a power of two on the gradient changes its last bits."""

    def gradient(factor: float) -> Tensor:
        x = draw()[0].repeat(1, 2).requires_grad_()
        weights = torch.linspace(0.5, 2, x.numel())
        (REDUCTIONS[name](x * 3).flatten() * weights * factor).sum().backward()
        return x.grad / factor

    assert not torch.equal(gradient(1.0), gradient(2.0**-12))


def node(target, *args, **kwargs) -> fx.Node:
    graph = fx.Graph()
    x = graph.placeholder("x")
    create = graph.call_method if isinstance(target, str) else graph.call_function
    return create(target, (x, *args), kwargs)


def test_the_flag_is_found_by_position_and_by_keyword() -> None:
    assert inplace_slot(F.elu) == (2, "inplace")
    assert inplace_slot(torch.add) is None
    assert writes_input(node(F.elu, 1.0, True))
    assert writes_input(node(F.celu, inplace=True))
    assert writes_input(node(F.embedding, 0, None, 1.0))
    assert not writes_input(node(F.elu, 1.0, False))
    assert not writes_input(node(F.elu))
    assert not writes_input(node("relu"))


def test_every_way_to_call_an_op_has_its_row() -> None:
    assert not effect_of(node(torch.logcumsumexp, 0)).linear_backward
    assert not effect_of(node("logcumsumexp", 0)).linear_backward
    assert not effect_of(node(torch.ops.aten.logcumsumexp.default, 0)).linear_backward
    assert effect_of(node("add_")).has_method
    assert effect_of(node(torch.sin)) == EFFECTS.get("sin", effect_of(node("sin")))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_a_form_that_writes(name) -> None:
    assert hasattr(Tensor, name)
    assert hasattr(Tensor, name + "_")


@pytest.mark.parametrize("target", IN_PLACE_OPERATORS, ids=lambda f: f.__name__)
def test_an_operator_writes_what_its_other_returns(target) -> None:
    x, y = torch.randn(5), torch.randn(5)
    new = IN_PLACE_OPERATORS[target](x, y)
    assert target(x, y) is x
    assert torch.equal(x, new)


def idle(name: str):
    x = torch.randn(3)
    calls = {
        "to": lambda: x.to(torch.float32),
        "type": lambda: x.type(torch.float32),
        "type_as": lambda: x.type_as(x),
        "sum_to_size": lambda: x.sum_to_size(3),
        "getattr": lambda: x.real,
        "pos": lambda: operator.pos(x),
        "real": lambda: x.real,
    }
    return x, calls.get(name, lambda: getattr(x, name)())


OTHERS = {
    "ravel",
    "reshape",
    "leaky_relu",
    "double",
    "half",
    "bfloat16",
    "cuda",
    "to_dense",
    "atleast_2d",
    "atleast_3d",
    "dropout",
}


@pytest.mark.parametrize("name", sorted(n for n in MAY_DO_NOTHING - OTHERS if "dropout" not in n))
def test_a_call_with_nothing_to_do_returns_its_input(name) -> None:
    x, call = idle(name)
    if name in ("atleast_1d",):
        assert torch.atleast_1d(x) is x
    else:
        assert call() is x
