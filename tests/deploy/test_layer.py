"""What cannot be served as it is evaluated is refused by name, before a file is written."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import unitscale as us
from deploy.small import Gated, Twice, evaluated, inputs
from unitscale import deploy


class Attending(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.scaled_dot_product_attention(x, x + 1, x + 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def plain() -> nn.Module:
    return Gated()


def unevaluated() -> nn.Module:
    return us.unit_scale(Gated(), "fp8-serve")


def trained_only() -> nn.Module:
    model = unevaluated()
    model(inputs()).sum().backward()
    return model


def without_units() -> nn.Module:
    return evaluated(Gated(), remeasure="never")


def written_by_hand() -> nn.Module:
    model = us.apply_recipe(Gated().eval(), "fp8-current")
    model(inputs())
    return model


def with_nan() -> nn.Module:
    model = evaluated(Gated())
    with torch.no_grad():
        model.down_proj.weight[0, 0] = torch.nan
    return model


def grown() -> nn.Module:
    model = evaluated(Gated())
    with torch.no_grad():
        model.down_proj.weight *= 1e4
    return model


def tiny_weights() -> nn.Module:
    model = Gated()
    with torch.no_grad():
        model.down_proj.weight *= 2.0**-16
    return evaluated(model)


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "this Gated has no units; call us.unit_scale": plain,
    "this Gated has not run since it was scaled": unevaluated,
    "this Gated was only trained since it was scaled": trained_only,
    "5 tensors have no unit: 'gate_proj.weight', 'x', 'up_proj.weight' and": without_units,
    "recipe 'fp8-current' was applied without units": written_by_hand,
    "recipe 'fp32-units' rounds inputs as 'as is unit'": lambda: evaluated(Gated(), "fp32-units"),
    "recipe 'nvfp4-units' rounds inputs as 'NVFP4 unit 1x16'": lambda: evaluated(
        Gated(), "nvfp4-units"
    ),
    "recipe 'fp16' rounds inputs as 'FP16 unit'": lambda: evaluated(Gated(), "fp16"),
    "the recipe rounds 1 attention products in Attending": lambda: evaluated(
        Attending(), "fp8-e4m3"
    ),
    "the recipe rounds 3 results in BF16": lambda: evaluated(Gated(), "fp8-bf16"),
    "every tensor between products is rounded to FP16": lambda: evaluated(
        Gated(), activations=us.formats.FP16
    ),
    "servers join 'up_proj' with 'gate_proj', which keep full precision": lambda: evaluated(
        Gated(), skip=["gate_proj"]
    ),
    "the weight of 'down_proj' holds NaN": with_nan,
    "the weight of 'down_proj' reaches": grown,
    "the weight of 'down_proj' has the unit 2^-": tiny_weights,
    "'layer' is used at several places, with inputs at 2^0 and 2^9": lambda: evaluated(Twice()),
    "the weight of 'first' is rounded and is 'second.weight' too": lambda: evaluated(Tied()),
    "the recipe rounds no nn.Linear of this model": lambda: evaluated(Gated(), skip=["*_proj"]),
    "gate_proj.weight is masked": lambda: evaluated(us.compress.mask_smallest(Gated(), 0.5)),
    "down_proj.weight is masked": lambda: evaluated(
        us.compress.mask_smallest(Gated(), 0.5, layers=["down_proj"])
    ),
    "it is in torch.float16, where dividing by a unit is not exact": lambda: half(),
    "it is in torch.float64; export it in bfloat16 or float32": lambda: double(),
    "its parameters are in torch.bfloat16, torch.float32, and a loader": lambda: mixed(),
}


def half() -> nn.Module:
    model = us.unit_scale(Gated().eval().half(), "fp8-serve")
    with torch.no_grad():
        model(inputs().half())
    return model


def double() -> nn.Module:
    model = us.unit_scale(Gated().eval().double(), "fp8-serve")
    with torch.no_grad():
        model(inputs().double())
    return model


def mixed() -> nn.Module:
    model = evaluated(Gated())
    assert model.down_proj.bias is not None
    model.down_proj.bias.data = model.down_proj.bias.data.bfloat16()
    return model


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.filterwarnings("ignore:.*of recipe 'fp8-serve' no product:UserWarning")
@pytest.mark.filterwarnings("ignore:.*keeps every product of this call")
def test_is_refused_by_name_and_nothing_is_written(message: str, tmp_path: Path) -> None:
    model = REFUSED[message]()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        deploy.export(model, tmp_path / "out", "safetensors")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_units_that_differ_are_joined_where_that_changes_no_value(tmp_path: Path) -> None:
    """Weights of one and of two powers of two: exact at either unit."""
    model = Gated()
    with torch.no_grad():
        for layer, log2 in ((model.gate_proj, -3), (model.up_proj, 0)):
            layer.weight.copy_(torch.sign(layer.weight) * 2.0**log2)
    recipe = us.recipes.RECIPES["fp8-serve"]
    apart = us.recipes.Recipe(name="apart", rules=recipe.rules)
    evaluated(model, apart)
    units = {row.path: row.weight_log2 for row in us.units.layer_units(model)}
    assert (units["gate_proj"], units["up_proj"]) == (-3, 0)
    deploy.export(model, tmp_path / "out", "safetensors")
    with torch.no_grad():
        ours = model(inputs())
        assert torch.equal(deploy.load(tmp_path / "out", Gated())(inputs()), ours)


def test_units_that_differ_are_named_where_it_changes_some(tmp_path: Path) -> None:
    model = Gated()
    with torch.no_grad():
        model.gate_proj.weight /= 256
    apart = us.recipes.Recipe(name="apart", rules=us.recipes.RECIPES["fp8-serve"].rules)
    evaluated(model, apart)
    words = r"the weight of 'gate_proj' at 2\^-11 is joined with others at 2\^-3, which moves \d"
    with pytest.raises(ValueError, match=words):
        deploy.export(model, tmp_path / "out", "safetensors")
    done = deploy.export(model, tmp_path / "out", "safetensors", differences="report")
    (difference,) = done.differences
    assert "is joined with others" in difference
    assert "differs: the weight of 'gate_proj'" in str(done)


class Turned(nn.Module):
    """The layer of GPT-2, whose weight is [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(32, 16), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


@pytest.mark.parametrize(
    ("recipe", "skip", "words"),
    [
        (
            "fp8-e4m3",
            (),
            "the recipe rounds 1 Conv1D layers, which the loader would take for plain",
        ),
        (
            "fp8-serve",
            ("c_proj",),
            "stored in FP8; 'c_fc' and 0 others are Conv1D, which no loader",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*keeps every product of this call")
def test_conv1d_is_refused_by_name(
    recipe: str, skip: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    model = evaluated(Turned(), recipe, skip=skip)
    with pytest.raises(ValueError, match=words):
        deploy.export(model, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_conv1d_that_is_not_rounded_stays_as_it_is(tmp_path: Path) -> None:
    model = evaluated(Turned())
    deploy.export(model, tmp_path / "out", "safetensors")
    again = deploy.load(tmp_path / "out", Turned())
    with torch.no_grad():
        assert torch.equal(again(inputs()), model(inputs()))


class Helped(Gated):
    """One layer that training alone calls, and one that nothing does."""

    def __init__(self) -> None:
        super().__init__()
        self.helper, self.idle = nn.Linear(16, 16), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.helper(x) if self.training else y


def trained_and_evaluated(**options: Any) -> nn.Module:
    model = us.unit_scale(Helped(), "fp8-serve", **options)
    model(inputs()).sum().backward()
    with torch.no_grad():
        model.eval()(inputs())
    return model


def test_layers_that_evaluation_never_called_are_named(tmp_path: Path) -> None:
    model = trained_and_evaluated()
    words = "evaluation never called 'helper', 'idle', so how it rounds them is not known"
    with pytest.raises(ValueError, match=words):
        deploy.export(model, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []
    done = deploy.export(model, tmp_path / "out", "safetensors", differences="report")
    assert (done.ignored, len(done.differences)) == (("helper", "idle"), 1)


@pytest.mark.filterwarnings("ignore:.*keeps no product of this call:UserWarning")
def test_layers_that_are_to_be_skipped_are_exported_as_they_are(tmp_path: Path) -> None:
    model = trained_and_evaluated(skip=["helper", "idl*"])
    done = deploy.export(model, tmp_path / "out", "safetensors")
    assert (done.ignored, done.differences) == (("helper", "idle"), ())


class Changing(Gated):
    """In evaluation the last layer takes a tensor that training has not."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(h if self.training else 1.5 * h)


def test_a_tensor_of_evaluation_alone_has_a_unit_only_after_an_evaluation(tmp_path: Path) -> None:
    model = us.unit_scale(Changing(), "fp8-serve")
    model(inputs()).sum().backward()
    with torch.no_grad():
        ours = model.eval()(inputs())
    deploy.export(model, tmp_path / "out", "safetensors")
    with torch.no_grad():
        assert torch.equal(deploy.load(tmp_path / "out", Changing())(inputs()), ours)
    us.recalibrate(model)
    model.train()(inputs()).sum().backward()
    with pytest.raises(ValueError, match=r"1 tensors have no unit: 'mul#1'; .*evaluate once more"):
        deploy.export(model.eval(), tmp_path / "later", "safetensors")
    assert not (tmp_path / "later").exists()
