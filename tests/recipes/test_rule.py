"""The three products of a layer as data, and rules that say where they hold."""

import re

import pytest

from unitscale.formats import BF16, E4M3FN, E5M2, NVFP4
from unitscale.recipes import (
    RECIPES,
    Current,
    Delayed,
    Gemm,
    Operand,
    PerAxis,
    PerTile,
    RandomHadamard,
    Rule,
    Unit,
)
from unitscale.recipes.rule import OPS, PRODUCTS

X, G, W = Operand(E4M3FN), Operand(E5M2), Operand(BF16)
TURNED = Operand(E4M3FN, Current(), transform=RandomHadamard())


def test_of_takes_each_tensor_alike_in_both_of_its_products():
    gemm = Gemm.of(X, G, weight=W)
    assert gemm.output == (X, W)
    assert gemm.grad_input == (G, W)
    assert gemm.grad_weight == (G, X)
    assert Gemm.of(X) == Gemm.of(X, X, weight=X)


def test_products_are_named_with_their_operands():
    gemm = Gemm.of(X, G, weight=W, results=BF16)
    assert [name for name, _ in gemm.pairs()] == list(PRODUCTS)
    assert gemm.operands == (X, W, G, W, G, X)
    assert gemm.rows()[2] == ("grad_weight", "E5M2 cast", "E4M3FN cast", "BF16")


@pytest.mark.parametrize(
    ("gemm", "is_per_tensor"),
    [
        (Gemm(), True),
        (Gemm.of(X, G, weight=W), True),
        (Gemm.of(Operand(E4M3FN, Delayed())), True),
        (Gemm((X, X), (G, X), (G, W)), False),  # the input is taken in two ways
        (Gemm((X, W), (G, X), (G, X)), False),  # the weight is
        (Gemm((X, X), (G, X), (X, X)), False),  # the gradient is
        (Gemm.of(Operand(E4M3FN, Current(), PerAxis())), False),
        (Gemm.of(X, weight=Operand(E4M3FN, Current(), PerTile(128, 128))), False),
        (Gemm.of(Operand(E4M3FN, Current(), rounding="stochastic")), True),
        (Gemm.of(TURNED), False),
    ],
)
def test_per_tensor_is_one_rounding_and_one_scale_for_each_tensor(gemm, is_per_tensor):
    assert gemm.is_per_tensor == is_per_tensor


def test_units_and_rounding_are_those_of_any_operand():
    assert Gemm.of(X, Operand(E5M2, Unit())).unit_scaled
    assert not Gemm.of(X).unit_scaled
    assert Gemm(results=BF16).rounds
    assert Gemm(grad_weight=(X, Operand())).rounds
    assert not Gemm.of(Operand(None, Unit())).rounds


DELAYED = Operand(E4M3FN, Delayed())
REFUSED = {
    "the two operands of grad_weight are turned by RandomHadamard(size=16) and None": lambda: Gemm(
        grad_weight=(TURNED, X)
    ),
    "the two operands of output are turned by RandomHadamard(size=2) and Random": lambda: Gemm(
        (Operand(NVFP4, Current(), transform=RandomHadamard(2)), TURNED)
    ),
    "output is 'E4M3FN'; expected a pair": lambda: Gemm(output="E4M3FN"),
    "grad_input is (Operand(": lambda: Gemm(grad_input=(X,)),
    "expected a pair of operands, (grad_output, weight)": lambda: Gemm(grad_input=(E5M2, E4M3FN)),
    "value is 'E4M3FN current'; expected an Operand; write parse_operand('E4M3": lambda: Gemm.of(
        "E4M3FN current"
    ),
    "gradient is 'E5M2'; expected an Operand; write parse_operand('E5M2')": lambda: Gemm.of(
        X, "E5M2"
    ),
    "weight is 3; expected an Operand": lambda: Gemm.of(X, weight=3),
    "value is None; expected an Operand": lambda: Gemm.of(None),
    "results is 'NVFP4'; expected a FloatFormat": lambda: Gemm(results="NVFP4"),
    "the input is taken as E4M3FN delayed and as E4M3FN cast; a delayed": lambda: Gemm(
        (DELAYED, X), (G, X), (G, X)
    ),
    "the gradient of the output is taken as E5M2 cast and as E4M3FN delayed": lambda: Gemm(
        (X, X), (G, X), (DELAYED, X)
    ),
    "the weight is taken as E4M3FN delayed and as E4M3FN delayed history=2": lambda: Gemm(
        (X, DELAYED), (G, Operand(E4M3FN, Delayed(2))), (G, X)
    ),
    "op is 'conv'; expected one of *, linear, layer, readout, matmul": lambda: Rule(op="conv"),
    "path is empty; expected a pattern of module paths": lambda: Rule(""),
    "path is None; expected a pattern": lambda: Rule(None),
    "gemm is 'fp8'; expected a Gemm, or None for full precision": lambda: Rule(gemm="fp8"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        REFUSED[message]()
    assert "\n" not in str(error.value)


def test_operands_turned_alike_are_taken():
    assert Gemm(grad_weight=(TURNED, TURNED)).grad_weight == (TURNED, TURNED)


@pytest.mark.parametrize("op", OPS)
def test_a_rule_covers_its_op_and_one_for_linears_what_is_one(op):
    covered = {other for other in OPS if Rule(op=op).covers(other)}
    expected = {"*": set(OPS), "linear": {"linear", "layer", "readout", "grouped"}}
    assert covered == expected.get(op, {op})


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_turns_one_side_of_a_product(name):
    """And the products of every recipe can be made anew from what they show."""
    for gemm in RECIPES[name].gemms:
        assert Gemm(gemm.output, gemm.grad_input, gemm.grad_weight, gemm.results) == gemm
        for _, (left, right) in gemm.pairs():
            assert left.transform == right.transform
