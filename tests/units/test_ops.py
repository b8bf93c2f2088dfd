"""Every row of the table of rules claims something of an op; here the op is called and asked."""

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from units.op_arguments import ARGUMENTS, Arguments, draw, name_of
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
