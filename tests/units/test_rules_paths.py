"""Rules by path and op on a model: which one counts, which are refused, which are warned of."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from unitscale.formats import BF16, E4M3FN, E5M2
from unitscale.nn import LinearReadout
from unitscale.recipes import Gemm, Operand, Recipe, Rule, uniform
from unitscale.units import apply_recipe, unit_scale

# These plain models take a recipe of units as one written unit-scaled would: cast as it is.
pytestmark = pytest.mark.filterwarnings("ignore:.*rounds tensors at their units")

FP8, WIDE = (uniform(*formats)[0].gemm for formats in ((E4M3FN, E5M2), (BF16, BF16)))
E4 = Gemm.of(Operand(E4M3FN))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


class Model(nn.Module):
    """Two blocks, a product without a weight, a head."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = head or nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(torch.matmul(x @ x.mT, x)).square().mean()


def made(*rules: Rule, **words) -> Recipe:
    return Recipe(name="mine", rules=rules, **words)


def by_name(recipe: Recipe, model: nn.Module | None = None, **options) -> dict[str, str]:
    """What multiplies each product, by name, after a step."""
    model = apply_recipe(model or Model(), recipe, inner="eager", **options)
    model(torch.randn(2, 5, 8)).backward()
    return {row.name: str(row.product) for row in us.unit_rows(model) if row.product is not None}


def of(gemm: Gemm) -> str:
    return f"{gemm.output[0]}, gradients {gemm.grad_input[0]} (emulated)"


def test_the_first_rule_that_matches_counts():
    found = by_name(made(Rule("blocks.0*", "*", E4), Rule(op="linear", gemm=WIDE), Rule(gemm=FP8)))
    assert found["blocks.0.up.linear"] == found["blocks.0.down.linear"] == of(E4)
    assert found["blocks.1.up.linear"] == found["head.linear"] == of(WIDE)
    assert found["matmul"] == of(FP8)


def test_in_the_other_order_the_other_counts():
    rules = Rule(op="linear", gemm=WIDE), Rule("blocks.0*", "*", E4), Rule(gemm=FP8)
    with pytest.warns(UserWarning, match=r"path 'blocks\.0\*', op '\*'"):
        found = by_name(made(*rules))
    assert found["blocks.0.up.linear"] == of(WIDE)


def test_a_rule_matches_what_is_inside_of_a_module():
    found = by_name(made(Rule("blocks.1", "linear", E4), Rule(gemm=FP8)))
    assert found["blocks.1.up.linear"] == of(E4)
    assert found["blocks.0.up.linear"] == of(FP8)


def test_a_rule_without_a_gemm_keeps_full_precision_and_says_so():
    found = by_name(made(Rule("head", "linear"), Rule(gemm=FP8)))
    assert found["head.linear"] == (
        "full precision: recipe mine keeps linear products in full precision"
    )
    assert found["blocks.0.up.linear"] == of(FP8)


def test_a_product_that_no_rule_matches_says_so():
    found = by_name(made(Rule("blocks.*", "linear", FP8)))
    assert found["head.linear"] == "full precision: recipe mine has no rule for linear products"
    assert found["matmul"] == "full precision: recipe mine has no rule for matmul products"


@pytest.mark.parametrize("how", [unit_scale, apply_recipe])
def test_a_path_that_matches_no_module_is_refused_before_anything_is_changed(how):
    model = Model()
    before = dict(vars(model))
    message = r"path='block\.0' matches no module of Model; nearest path: 'blocks\.0'"
    with pytest.raises(ValueError, match=f"{how.__name__}: {message}"):
        how(model, made(Rule("block.0", "linear", FP8), Rule(gemm=E4)), inner="eager")
    assert dict(vars(model)) == before
    how(model, made(Rule("blocks.0", "linear", FP8), Rule(gemm=E4)), inner="eager")


def test_set_recipe_refuses_it_and_goes_on_as_before():
    model = unit_scale(Model(), "fp8", inner="eager")
    x = torch.randn(2, 5, 8)
    model(x).backward()
    want = model(x)
    with pytest.raises(ValueError, match=r"set_recipe: path='nothing\.\*' matches no module"):
        us.set_recipe(model, made(Rule("nothing.*", "*", FP8)))
    assert torch.equal(model(x), want)
    assert "fp8" in str(us.summary(model))


def test_a_rule_whose_op_matched_nothing_is_warned_of_once():
    model = apply_recipe(
        Model(), made(Rule(op="convolution", gemm=E4), Rule(gemm=FP8)), inner="eager"
    )
    x = torch.randn(2, 5, 8)
    with pytest.warns(UserWarning, match=r"no product .* \(path '\*', op 'convolution'\)") as seen:
        model(x).backward()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x).backward()


def test_rules_that_match_give_no_warning():
    by_name(made(Rule(op="linear", gemm=E4), Rule(op="matmul", gemm=FP8)))


def test_mus_warns_on_a_model_without_a_readout():
    with pytest.warns(UserWarning, match=r"'mus' no product .* op 'readout'"):
        found = by_name(us.recipe("mus"))
    assert found["head.linear"].startswith("E4M3FN unit")


def test_mus_keeps_a_readout_in_bf16_without_a_warning():
    found = by_name(us.recipe("mus"), Model(LinearReadout(8, 4)))
    assert of(WIDE) in {product for name, product in found.items() if name.startswith("head.")}
    assert found["blocks.0.up.linear"].startswith("E4M3FN unit, gradients E5M2 unit")


def test_skip_takes_a_function_of_a_path_and_its_module():
    seen = []

    def skip(path: str, module: nn.Module) -> bool:
        seen.append(path)
        return isinstance(module, nn.Linear) and module.out_features == 16

    found = by_name(made(Rule(gemm=FP8)), skip=skip)
    skipped = {name for name, product in found.items() if product.startswith("full precision")}
    assert skipped == {"blocks.0.up.linear", "blocks.1.up.linear"}
    assert found["blocks.0.up.linear"] == "full precision: skip='blocks.0.up'"
    assert seen[0] == "blocks"  # not the model itself
    assert "blocks.1.down" in seen


def test_skip_by_function_is_skip_by_the_paths_it_picks():
    by_function = by_name(made(Rule(gemm=FP8)), skip=lambda path, _: path.endswith("down"))
    assert by_function.keys() == by_name(made(Rule(gemm=FP8)), skip=["*.down"]).keys()
    assert by_function["blocks.1.down.linear"] == "full precision: skip='blocks.1.down'"


def test_skip_by_a_string_is_refused():
    with pytest.raises(TypeError, match=r"skip is the string 'head'; expected a list, \['head'\]"):
        apply_recipe(Model(), "fp8", skip="head")


def test_one_module_by_two_paths_has_the_rule_of_either():
    model = Model()
    model.alias = model.head
    found = by_name(made(Rule("alias", "linear", E4), Rule(gemm=FP8)), model)
    assert of(E4) in {found[name] for name in found if name.endswith("linear")}


def test_rules_for_both_paths_of_a_module_are_taken():
    model = Model()
    model.alias = model.head
    rules = Rule("alias", "linear", E4), Rule("head", "linear", FP8), Rule(gemm=WIDE)
    found = by_name(made(*rules), model)
    assert of(E4) in found.values()  # the first
    assert of(FP8) not in found.values()


class Left(nn.Module):
    """The weight on the left, in three spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spelling = spelling
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "linear":
            return nn.functional.linear(self.weight, x).square().mean()
        if self.spelling == "addmm":
            return torch.addmm(self.bias, self.weight, x.mT).square().mean()
        return (self.weight @ x.mT).square().mean()


@pytest.mark.parametrize("spelling", ["linear", "addmm", "matmul"])
def test_a_weight_on_the_left_is_rounded_as_a_weight(spelling):
    """The gradient of the weight alone is in BF16 here, on whichever side the weight stands."""
    model = apply_recipe(Left(spelling), "fp8-rowwise-hp", inner="eager")
    model(torch.randn(5, 8)).backward()
    (found,) = (str(row.product) for row in us.unit_rows(model) if row.product is not None)
    assert "grad_input BF16 cast @ BF16 cast" in found
    assert "grad_weight E4M3FN current rceil row @ E4M3FN current rceil" in found
