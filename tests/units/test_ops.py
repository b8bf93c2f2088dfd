"""Every row of the table of rules claims something of an op; here the op is called and asked."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.units.op_table import (
    ADD_PRODUCT,
    BOTH,
    FIRST,
    RESHAPE,
    SUM,
    WEIGHTED,
    Rule,
)
from unitscale.units.ops import RULES

Arguments = tuple[Any, ...]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def pair(*shape: int) -> Callable[[], Arguments]:
    return lambda: (draw(*shape), draw(*shape))


def one(*others: Any) -> Callable[[], Arguments]:
    return lambda: (draw(4, 6), *others)


CONVOLUTION = ([1], [0], [1], False, [0], 1)
"""Stride, padding, dilation, transposed, output padding and groups."""

# Arguments of a call, by the name of the op; torch's function, operator and method share them.
ARGUMENTS: dict[str, Callable[[], Arguments]] = {
    "linear": lambda: (draw(3, 4), draw(5, 4), draw(5)),
    "conv1d": lambda: (draw(2, 3, 6), draw(4, 3, 2), draw(4)),
    "conv2d": lambda: (draw(2, 3, 5, 5), draw(4, 3, 2, 2), draw(4)),
    "conv3d": lambda: (draw(1, 3, 4, 4, 4), draw(2, 3, 2, 2, 2), draw(2)),
    "conv_transpose1d": lambda: (draw(2, 3, 6), draw(3, 4, 2), draw(4)),
    "conv_transpose2d": lambda: (draw(2, 3, 5, 5), draw(3, 4, 2, 2), draw(4)),
    "conv_transpose3d": lambda: (draw(1, 3, 3, 3, 3), draw(3, 2, 2, 2, 2), draw(2)),
    "scaled_dot_product_attention": lambda: (draw(2, 3, 4), draw(2, 5, 4), draw(2, 5, 4)),
    "matmul": lambda: (draw(2, 3, 4), draw(4, 5)),
    "__matmul__": lambda: (draw(2, 3, 4), draw(4, 5)),
    "mm": lambda: (draw(3, 4), draw(4, 5)),
    "bmm": lambda: (draw(2, 3, 4), draw(2, 4, 5)),
    "addmm": lambda: (draw(5), draw(3, 4), draw(4, 5)),
    "baddbmm": lambda: (draw(2, 3, 5), draw(2, 3, 4), draw(2, 4, 5)),
    "einsum": lambda: ("ij,jk,kl->il", draw(2, 3), draw(3, 4), draw(4, 2)),
    "addbmm": lambda: (draw(3, 5), draw(2, 3, 4), draw(2, 4, 5)),
    "addmv": lambda: (draw(3), draw(3, 4), draw(4)),
    "addr": lambda: (draw(3, 4), draw(3), draw(4)),
    "bilinear": lambda: (draw(3, 4), draw(3, 2), draw(5, 4, 2), draw(5)),
    "chain_matmul": lambda: (draw(2, 3), draw(3, 4), draw(4, 5)),
    "conv_tbc": lambda: (draw(6, 2, 3), draw(2, 3, 4), draw(4)),
    "convolution": lambda: (draw(2, 3, 6), draw(4, 3, 2), draw(4), *CONVOLUTION),
    "dot": pair(4),
    "ger": lambda: (draw(3), draw(4)),
    "imatmul": lambda: (draw(2, 3, 4), draw(4, 5)),
    "inner": lambda: (draw(3, 4), draw(2, 4)),
    "kron": lambda: (draw(3, 4), draw(2, 2)),
    "linalg_matmul": lambda: (draw(2, 3, 4), draw(4, 5)),
    "linalg_multi_dot": lambda: (draw(2, 3), draw(3, 4), draw(4, 5)),
    "linalg_vecdot": pair(3, 4),
    "mv": lambda: (draw(3, 4), draw(4)),
    "outer": lambda: (draw(3), draw(4)),
    "__rmatmul__": lambda: (draw(4, 5), draw(3, 4)),
    "tensordot": lambda: (draw(3, 4), draw(4, 5), 1),
    "vdot": pair(4),
    "add": pair(3, 4),
    "sub": pair(3, 4),
    "maximum": pair(3, 4),
    "minimum": pair(3, 4),
    "cat": lambda: ([draw(3, 4), draw(2, 4), draw(1, 4)],),
    "stack": lambda: ([draw(3, 4), draw(3, 4)],),
    "where": lambda: (draw(3, 4) > 0, draw(3, 4), draw(3, 4)),
    "mul": pair(3, 4),
    "div": pair(3, 4),
    "truediv": pair(3, 4),
    "neg": one(),
    "abs": one(),
    "relu": one(),
    "leaky_relu": one(0.2),
    "dropout": one(0.5),
    "scaled": one(3.0, 5.0),
    "sum": one(1),
    "mean": one(1),
    "cumsum": one(1),
    "embedding": lambda: (torch.tensor([[1, 0], [3, 1]]), draw(4, 3)),
    "avg_pool1d": lambda: (draw(2, 3, 6), 2),
    "avg_pool2d": lambda: (draw(2, 3, 6, 6), 2),
    "adaptive_avg_pool1d": lambda: (draw(2, 3, 6), 4),
    "adaptive_avg_pool2d": lambda: (draw(2, 3, 6, 6), 4),
    "max_pool1d": lambda: (draw(2, 3, 6), 2),
    "max_pool2d": lambda: (draw(2, 3, 6, 6), 2),
    "interpolate": lambda: (draw(2, 3, 4, 4), None, 1.5, "bilinear"),
    "gather": one(1, torch.tensor([[0, 3]])),
    "index_select": one(1, torch.tensor([0, 3, 3])),
    "roll": one(2, 1),
    "flip": one([1]),
    "tril": one(),
    "triu": one(1),
    "clone": one(),
    "repeat_interleave": one(2, 1),
    "repeat": one(2, 3),
    "to": one(torch.float32),
    "float": one(),
    "type_as": one(torch.zeros(1)),
    "view": one(3, 8),
    "reshape": one((3, 8)),
    "transpose": one(0, 1),
    "permute": one((1, 0)),
    "flatten": one(),
    "unflatten": one(1, (2, 3)),
    "squeeze": lambda: (draw(4, 1, 6), 1),
    "unsqueeze": one(1),
    "contiguous": lambda: (draw(4, 6).T,),
    "swapaxes": one(0, 1),
    "t": one(),
    "expand": lambda: (draw(4, 1), 4, 6),
    "expand_as": lambda: (draw(4, 1), torch.zeros(4, 6)),
    "detach": one(),
    "narrow": one(1, 2, 3),
    "select": one(1, 2),
    "getitem": one((slice(1, 3), [0, 0, 2])),
}
FUNCTIONS_WITHOUT_A_NAME = {F.max_pool1d: "max_pool1d", F.max_pool2d: "max_pool2d"}


def name_of(target: Any) -> str:
    if isinstance(target, str):
        return target
    return FUNCTIONS_WITHOUT_A_NAME.get(target) or target.__name__


def label(target: Any) -> str:
    where = "Tensor" if isinstance(target, str) else target.__module__
    return f"{where}.{name_of(target)}"


def call(target: Any, args: list[Any], kwargs: dict[str, Any] | None = None) -> Tensor:
    """Call a function, or a method of the first argument, with dropout that repeats."""
    torch.manual_seed(5)
    if isinstance(target, str):
        return getattr(args[0], target)(*args[1:], **kwargs or {})
    if target is torch.linalg.multi_dot:  # linear in each tensor of its list
        return target(args)
    return target(*args, **kwargs or {})


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def positions(rule: Rule, args: Arguments) -> list[int]:
    """Where the operands of a call are."""
    tensors = [i for i, x in enumerate(args) if is_float(x) or isinstance(x, list)]
    named = [position for position, keyword in rule.operands if keyword != "tensors"]
    return named or tensors


def times(factors: dict[int, float], args: Arguments) -> list[Any]:
    """The arguments with some of them multiplied; a list has all its tensors multiplied."""

    def scale(value: Any, factor: float) -> Any:
        return [scale(x, factor) for x in value] if isinstance(value, list) else value * factor

    return [scale(x, factors[i]) if i in factors else x for i, x in enumerate(args)]


def results(target: Any, args: list[Any]) -> tuple[Tensor, list[Tensor]]:
    """The output of a call and, by argument, its gradients (of a list: those of its tensors)."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, list) and any(map(is_float, value)):
            return [leaf(x) for x in value]
        if is_float(value):
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]
        return value

    output = call(target, [leaf(x) for x in args])
    if not output.requires_grad:
        return output, [torch.zeros(()) for _ in leaves]
    weights = torch.arange(1.0, output.numel() + 1, dtype=output.dtype).view(output.shape)
    grads = torch.autograd.grad(output, leaves, weights, allow_unused=True)
    return output.detach(), [torch.zeros(()) if g is None else g for g in grads]


def owners(args: Arguments) -> list[int]:
    """The position of the argument behind each gradient of `results`."""
    return [
        i
        for i, value in enumerate(args)
        for x in (value if isinstance(value, list) else [value])
        if is_float(x)
    ]


def assert_scales(target: Any, args: Arguments, factors: dict[int, float], output: float) -> None:
    """With arguments times `factors`, the output is `output` times what it was.

    The gradient of an argument is then `output` over its own factor times what it was. Powers of
    two, so equality is to the bit.
    """
    y, grads = results(target, list(args))
    y_scaled, grads_scaled = results(target, times(factors, args))
    assert torch.equal(y_scaled, y * output)
    for i, grad, grad_scaled in zip(owners(args), grads, grads_scaled, strict=True):
        assert torch.equal(grad_scaled, grad * output / factors.get(i, 1.0)), f"argument {i}"


def assert_rule_holds(target: Any, rule: Rule, args: Arguments) -> None:
    """The op is what its row says: see the docstring of `rules` for the kinds."""
    where = positions(rule, args)
    for factor in (8.0, 0.125):
        if rule.kind == "sum":
            assert_scales(target, args, dict.fromkeys(where, factor), factor)
        elif rule.kind == "attention":
            query, key, value = where
            assert_scales(target, args, {query: factor, key: 1 / factor}, 1.0)
            assert_scales(target, args, {value: factor}, factor)
        else:
            assert rule.kind in ("linear", "view")
            bias = {rule.additive[0]: factor} if rule.additive else {}
            for position in where:
                assert_scales(target, args, {position: factor} | bias, factor)
    if rule.kind == "view":
        x, y = args[where[0]], call(target, list(args))
        assert set(y.flatten().tolist()) <= set(x.flatten().tolist())
        if rule.bijective:
            assert sorted(y.flatten().tolist()) == sorted(x.flatten().tolist())


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated:UserWarning")
@pytest.mark.parametrize("target", RULES, ids=label)
def test_rule_holds(target):
    assert_rule_holds(target, RULES[target], ARGUMENTS[name_of(target)]())


WRONG: list[tuple[Any, Rule, Arguments]] = [
    (torch.exp, FIRST, (draw(3, 4),)),
    (F.relu6, FIRST, (draw(3, 4) * 6,)),
    (torch.square, FIRST, (draw(3, 4),)),
    (torch.mul, SUM, (draw(3, 4), draw(3, 4))),
    (torch.div, BOTH, (draw(3, 4), draw(3, 4))),
    (torch.add, BOTH, (draw(3, 4), draw(3, 4))),
    (torch.round, FIRST, (draw(3, 4) * 6,)),
    (F.linear, Rule(kind="linear", operands=WEIGHTED.operands), ARGUMENTS["linear"]()),
    (F.bilinear, WEIGHTED, (draw(3, 4), draw(3, 4), draw(5, 4, 4), draw(5))),
    (torch.addmm, Rule(kind="linear", operands=ADD_PRODUCT.operands), ARGUMENTS["addmm"]()),
    (torch.sum, RESHAPE, (draw(3, 4), 1)),
    (operator.getitem, RESHAPE, (draw(3, 4), 1)),
    ("sigmoid", FIRST, (draw(3, 4),)),
]


@pytest.mark.parametrize(
    ("target", "rule", "args"), WRONG, ids=[f"{label(t)}-{r.kind}" for t, r, _ in WRONG]
)
def test_wrong_row_is_seen(target, rule, args):
    with pytest.raises((AssertionError, RuntimeError)):
        assert_rule_holds(target, rule, args)


def takes_keywords(target: Any) -> bool:
    """Whether a call can name all its tensors: operators cannot, nor can `self` be named."""
    operands = RULES[target].operands
    if target is torch.linalg.multi_dot:
        return False
    is_operator = getattr(target, "__module__", "") == "_operator" or target == "__matmul__"
    return (
        bool(operands) and not is_operator and not (isinstance(target, str) and operands[1:] == ())
    )


@pytest.mark.parametrize("target", list(filter(takes_keywords, RULES)), ids=label)
def test_keywords_of_operands_are_those_of_the_op(target):
    """A call by keyword is the call by position, so that no operand is missed."""
    rule, args = RULES[target], list(ARGUMENTS[name_of(target)]())
    slots = [*rule.operands, *([rule.additive] if rule.additive else [])]
    first = 1 if isinstance(target, str) else min(position for position, _ in slots)
    named = {keyword: args[position] for position, keyword in slots if position >= first}
    others = [x for i, x in enumerate(args) if i >= first and i not in dict(slots)]
    if not others:  # they have keywords that the table does not know
        assert torch.equal(call(target, args[:first], named), call(target, args))
