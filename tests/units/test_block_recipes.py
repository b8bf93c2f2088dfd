"""Every family of recipes on a whole model: eager, compiled, checkpointed, in sixteen bits."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitscale as us
from units.block_models import Small, Thin, steps
from unitscale.units import apply_recipe, unit_scale
from unitscale.units.forward import session_of

pytestmark = [
    # The plain model takes mus, which casts, as one written unit-scaled would.
    pytest.mark.filterwarnings("ignore:.*rounds tensors at their units"),
    # 2026-11-28: torch 2.13's Dynamo reads `.grad` of what a graph is given.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # The small model has no read-out of its own, and its loss is far from unit scale.
    pytest.mark.filterwarnings("ignore:.*no product in this call matches the rule.*readout"),
    pytest.mark.filterwarnings("ignore:.*went to zero, at the scale in force"),
]

FAMILIES = {
    "fp8-delayed": apply_recipe,
    "fp8-rowwise": apply_recipe,
    "fp8-rowwise-hp": apply_recipe,
    "fp8-block": apply_recipe,
    "fp8-amax": apply_recipe,
    "fp8-cscale": apply_recipe,
    "mxfp8": apply_recipe,
    "mxfp4-rceil": apply_recipe,
    "nvfp4": apply_recipe,
    "nvfp4-units": unit_scale,
    "mus": apply_recipe,
    "fp8": unit_scale,
}
LINEAR_ALONE = [name for name in FAMILIES if name not in ("fp8-delayed", "fp8")]
each_family = pytest.mark.parametrize("name", FAMILIES)


def scaled(name: str, model: nn.Module | None = None, inner: str = "eager") -> nn.Module:
    return FAMILIES[name](Small() if model is None else model, name, inner=inner)


@cache
def after_a_step(name: str) -> nn.Module:
    """Made once for the tests that only look at what one step was."""
    model = scaled(name)
    steps(model, 1)
    return model


def draws(name: str) -> bool:
    """Whether gradients are rounded stochastically: compilers draw in an order of their own."""
    return "nvfp4" in name


def assert_agree(got: list[Tensor], want: list[Tensor], share: float = 1e-3) -> None:
    """The whole of each tensor is off by less than `share` of its norm.

    A float32 sum in another order moves a value over the edge between two values of a format, by
    2^-3 of it in four bits; few are so near, and the rest stays equal.
    """
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        off = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)
        assert off < share, f"tensor {i} is off by {off:.1e}"


def test_assert_agree_sees_another_format():
    got, want = steps(scaled("fp8-block")), steps(scaled("mxfp8"))
    with pytest.raises(AssertionError, match="tensor 0 is off"):
        assert_agree(got, want)
    assert_agree(want, [x.clone() for x in want])


COMPILED = ["fp8-delayed", "fp8-rowwise-hp", "fp8-block", "mxfp8", "nvfp4", "nvfp4-units", "mus"]


@pytest.mark.parametrize("name", COMPILED)
def test_aot_eager_agrees_with_eager(name):
    want = steps(scaled(name, Thin()))
    torch._dynamo.reset()
    got = steps(scaled(name, Thin(), inner="aot_eager"))
    if draws(name):
        got, want = got[:1], want[:1]
    assert_agree(got, want)


def test_units_in_a_checkpoint_agree_too():
    """Its body reads factors of its own, beside those that are inputs of the graph."""
    found = []
    for inner in ("eager", "aot_eager"):
        torch._dynamo.reset()
        model = unit_scale(Small(checkpointed=True), "fp8", inner=inner, remeasure="once")
        found.append(steps(model))
    assert_agree(*found)


def test_a_whole_model_agrees_too():
    want = steps(scaled("fp8-rowwise"), 1)
    torch._dynamo.reset()
    assert_agree(steps(scaled("fp8-rowwise", inner="aot_eager"), 1), want)


@pytest.mark.parametrize("name", ["fp8-block", "mxfp8"])
def test_inductor_agrees_with_eager(name):
    want = steps(scaled(name, Thin()), count=1)
    torch._dynamo.reset()
    got = steps(scaled(name, Thin(), inner="inductor"), count=1)
    # A fused kernel adds in another order, and some values cross an edge.
    assert_agree(got, want, 0.02)


@each_family
def test_a_checkpoint_inside_changes_nothing(name):
    want = steps(scaled(name))
    torch._dynamo.reset()
    got = steps(scaled(name, Small(checkpointed=True)))
    if draws(name):
        got, want = got[:1], want[:1]
    assert_agree(got, want)


class Around(nn.Module):
    """A scaled model, computed again in backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return checkpoint(self.model, tokens, use_reentrant=False)


@each_family
def test_a_checkpoint_around_changes_nothing(name):
    found = []
    for around in (False, True):
        torch._dynamo.reset()
        model = scaled(name)
        found.append(steps(Around(model) if around else model))
        assert session_of(model).store.step == 2
    assert_agree(*found)


@each_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_sixteen_bits_trains(name, dtype):
    """The loss is off by no more than a product of two operands of the format can be.

    An operand of four bits is off by 2^-2 of it at most, one of E4M3FN by 2^-4, and bfloat16 adds
    2^-8 for each of some ten ops in a row.
    """
    exact = steps(Small(), 1)[0]
    torch._dynamo.reset()
    found = steps(scaled(name, Small().to(dtype)), 1)
    assert all(x.dtype == dtype for x in found)
    assert all(x.isfinite().all() for x in found)
    assert all(x.count_nonzero() > 0 for x in found)
    operand = 2.0**-2 if "fp4" in name else 2.0**-4
    assert (found[0].float() - exact).abs() < (2 * operand + 10 * 2.0**-8) * exact


@each_family
def test_autocast_trains(name):
    exact = steps(Small(), 1)
    torch._dynamo.reset()
    model = scaled(name)
    with torch.autocast("cpu", torch.bfloat16):
        found = steps(model, 1)
    assert all(x.dtype == torch.float32 for x in found[1:])
    assert all(x.isfinite().all() for x in found)
    assert us.coverage(model) > 0.5
    assert (found[0] - exact[0]).abs() < 0.25 * exact[0]


@pytest.mark.parametrize("name", LINEAR_ALONE)
def test_products_without_a_rule_say_so(name):
    model = after_a_step(name)
    found = {row.name: row.product for row in us.unit_rows(model) if row.product is not None}
    attention = found["attn.scaled_dot_product_attention"]
    assert attention.by == "full precision"
    assert attention.why == f"recipe {name} has no rule for attention products"
    assert found["conv.conv1d"].why == f"recipe {name} has no rule for convolution products"
    unrounded = {n for n, product in found.items() if product.why is not None}
    assert unrounded == {"attn.scaled_dot_product_attention", "conv.conv1d"}
    assert f"recipe {name} has no rule for attention products" in str(us.summary(model))


@each_family
def test_coverage_is_the_share_of_the_multiply_adds_that_a_rule_is_for(name):
    model = after_a_step(name)
    rows, width = 33, 32
    linear = rows * width * (4 * width + 4 * width + width + 40)  # attention, feed, left, head
    convolution, attention = rows * width * width * 3, 2 * 3 * 11 * 11 * width
    share = linear / (linear + convolution + attention) if name in LINEAR_ALONE else 1.0
    assert us.coverage(model) == pytest.approx(share)


@pytest.mark.parametrize("name", ["fp8-rowwise-hp", "fp8-block", "nvfp4"])
def test_a_model_is_rounded_as_its_recipe_and_no_other(name):
    """Each of its products has the texts of the recipe, turned around where the weight is left."""
    model = after_a_step(name)
    gemm = us.recipe(name).main
    texts = [f"{left} @ {right}" for _, left, right, _ in gemm.rows()]
    by = {row.name: row.product.by for row in us.unit_rows(model) if row.product is not None}
    assert all(text in by["feed.up.linear"] for text in texts)
    output, grad_input, grad_weight = (pair for _, pair in gemm.pairs())
    turned = (
        f"output {output[1]} @ {output[0]}; grad_input {grad_weight[0]} @ {grad_weight[1]}; "
        f"grad_weight {grad_input[0]} @ {grad_input[1]}"
    )
    assert turned in by["matmul"]
