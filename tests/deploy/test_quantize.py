"""`deploy.quantize`: which layers, at which scales, and what is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import unitscale as us
from deploy.small import Gated, evaluated, inputs
from deploy.tiny import distance, ids, logits, made
from unitscale.deploy.quantized import quantized_layers

BATCHES = [inputs()]


def gated(seed=0):
    torch.manual_seed(seed)
    return Gated()


def test_linear_layers_are_replaced_and_heads_stay():
    model = made("bert")
    plain = logits(model, ids())
    assert us.deploy.quantize(model, "fp8", [{"input_ids": ids()}]) is model
    found = us.deploy.quantization(model)
    assert len(found.rows) == 6
    assert found.kept == {
        "bert.pooler.dense": "spare: '*pooler'",
        "classifier": "spare: '*classifier'",
    }
    assert 0 < distance(logits(model, ids()), plain) < 0.05
    assert "6 with weights E4M3FN row, inputs E4M3FN tensor static" in str(found)
    assert "classifier (spare: '*classifier')" in str(found)


def test_a_single_pattern_may_stand_for_itself():
    """Its letters matched nothing, and what was to be spared was quantized."""
    model = us.deploy.quantize(gated(), "int8-weight", spare="gate_proj")
    assert us.deploy.quantization(model).kept == {"gate_proj": "spare: 'gate_proj'"}
    with pytest.raises(TypeError, match="got NoneType"):
        us.deploy.quantize(None, "int8-weight")


def test_heads_are_quantized_when_asked():
    model = us.deploy.quantize(made("bert"), "fp8", [{"input_ids": ids()}], spare=())
    assert not us.deploy.quantization(model).kept


def test_experts_and_routers_are_named():
    model = us.deploy.quantize(made("qwen3_moe"), "int8-weight")
    kept = us.deploy.quantization(model).kept
    assert "experts" in str(kept)
    assert kept["model.layers.0.mlp.gate"] == "spare: '*.gate'"


def test_static_scales_are_the_amax_over_all_batches():
    model, x = gated(), inputs()
    us.deploy.quantize(model, "fp8", [x, 2 * x, x / 2])
    assert model.gate_proj.input_scale.item() == (2 * x).abs().max() / 448
    assert torch.equal(model.gate_proj.input_scale, model.up_proj.input_scale)
    assert torch.equal(
        model.gate_proj.weight_scale, gated().gate_proj.weight.abs().amax(1, True) / 448
    )


def test_weights_that_servers_join_share_one_scale():
    model = us.deploy.quantize(gated(), "fp8-tensor", BATCHES)
    scales = [getattr(gated(), name).weight.abs().max() / 448 for name in ("gate_proj", "up_proj")]
    assert model.gate_proj.weight_scale == model.up_proj.weight_scale == max(scales)
    assert min(scales) < max(scales)
    assert model.down_proj.weight_scale == gated().down_proj.weight.abs().max() / 448


def test_powers_of_two():
    model = us.deploy.quantize(gated(), "fp8", BATCHES, power_of_two=True)
    for layer in quantized_layers(model).values():
        for scale in (layer.weight_scale, layer.input_scale):
            assert torch.equal(scale.log2(), scale.log2().round())


def test_units_of_a_scaled_model_are_its_scales():
    model = gated().eval()
    evaluated(model)
    units = {row.path: row.input_log2 for row in us.units.layer_units(model)}
    expected = model(inputs()).detach()
    us.deploy.quantize(model, "fp8")
    for path, layer in quantized_layers(model).items():
        assert layer.input_scale.item() == 2.0 ** units[path]
    with pytest.raises(ValueError, match="this Gated has no units"):
        us.units.layer_units(model)
    assert distance(model(inputs()).detach(), expected) < 0.1  # two roundings of 2.7 % each


def test_units_reach_further_in_integers():
    model, other = (evaluated(gated()) for _ in range(2))
    us.deploy.quantize(model, "fp8")
    us.deploy.quantize(other, "int8")
    assert other.down_proj.input_scale == model.down_proj.input_scale / 16


def test_training_recipes_are_taken_by_their_forward_operands():
    model = us.deploy.quantize(gated(), us.recipe("fp8-rowwise"))
    row = us.deploy.quantization(model).rows[0]
    assert (row.weight, row.input) == ("E4M3FN row rceil", "E4M3FN row rceil dynamic")
    model = us.deploy.quantize(gated(), "fp8-serve", BATCHES)
    assert us.deploy.quantization(model).rows[0].input == "E4M3FN tensor static"


def test_a_shared_layer_is_made_once_and_hooks_stay():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model.append(model[0])
    calls = []
    model[0].register_forward_hook(lambda module, args, result: calls.append(1))
    us.deploy.quantize(model, "fp8-weight")
    model(torch.randn(2, 8))
    assert model[0] is model[2]
    assert len(calls) == 2


def test_an_encoder_layer_does_not_go_around_its_parts():
    """torch's fast path multiplies with the weights itself, and would round no input."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True).eval()
    x = torch.randn(2, 5, 16)
    plain = copy.deepcopy(model)
    us.deploy.quantize(model, "fp8", [x])
    with torch.no_grad():
        fast = model(x, src_key_padding_mask=torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
        given = model(x)
        for name in ("linear1", "linear2"):
            part = getattr(model.layers[0], name)
            getattr(plain.layers[0], name).weight.copy_(part.weight)
        weights_alone = plain(x)
    assert fast.shape == x.shape
    assert torch.allclose(fast[0], given[0], atol=1e-6)
    assert (given - weights_alone).abs().max() > 1e-3
    kept = us.deploy.quantization(model).kept
    assert kept["layers.0.self_attn"] == "nn.MultiheadAttention multiplies with its weights itself"


class Held(nn.Module):
    """A model that gives no tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return SimpleNamespace(found=self.layer(x))


NAN = inputs().clone()
NAN[1, 2] = float("nan")

REFUSED = [
    ({"calibration": None}, ValueError, "'fp8' has static scales .* has no units; pass calib"),
    ({"calibration": []}, ValueError, "calibration is empty"),
    ({"calibration": inputs()}, TypeError, "calibration is a Tensor; expected several batches"),
    ({"calibration": 3}, TypeError, "calibration is a int; expected several batches"),
    ({"calibration": [inputs(), NAN]}, ValueError, "batch 1 holds NaN in argument 0"),
    (
        {"calibration": [inputs(), torch.randn(4, 5)]},
        ValueError,
        r"batch 1 \(argument 0 \(4, 5\)\) does not fit the model, which raised RuntimeError",
    ),
    ({"calibration": [{"y": inputs()}]}, ValueError, "batch 0 .* TypeError: .*'y'"),
    ({"recipe": "fp9"}, ValueError, "unknown recipe 'fp9'; expected one of fp8, .* Did you mean"),
    ({"recipe": 8}, TypeError, "recipe is 8; expected a name"),
    ({"recipe": "fp32"}, ValueError, "'fp32' rounds no weight"),
    ({"recipe": "fp8-delayed"}, ValueError, "takes weights as 'E4M3FN delayed.*no quantized layer"),
    ({"clip": "max"}, ValueError, "clip is 'max'; expected one of amax, percentile, mse"),
    ({"percentile": 0.999}, ValueError, "percentile is 0.999; expected above 50"),
    (
        {"skip": ["*.gate"]},
        ValueError,
        r"skip='\*.gate' matches no layer; the layers are gate_proj",
    ),
    ({"skip": ["*"]}, ValueError, "this Gated has no layer to quantize: gate_proj: skip="),
    ({"skip": 3}, TypeError, r"skip has 3; expected patterns of paths"),
    ({"spare": "*"}, ValueError, r"no layer to quantize: gate_proj: spare: '\*'"),
    ({"percentile": "99"}, ValueError, "percentile is '99'"),
    ({"target": "1"}, ValueError, "target is '1'"),
    ({"target": 0.1, "most": None}, ValueError, "most is None"),
    ({"also": ("norms",)}, ValueError, "also has 'norms'; expected a tuple of attention, softmax"),
    ({"also": "gelu"}, ValueError, "also has 'gelu'; expected a tuple"),
    (
        {"also": ("gelu",), "recipe": "fp8-weight"},
        ValueError,
        "rounds activations, and 'fp8-weight' rounds weights alone",
    ),
    ({"target": -1.0}, ValueError, "target is -1.0; expected a loss of 0 or more"),
    ({"target": 0.1, "metric": "mse"}, ValueError, "metric is 'mse'; expected one of cosine, kl"),
    ({"target": 0.1, "most": 2}, ValueError, "most is 2; expected a share of layers"),
    (
        {"target": 0.1, "recipe": "fp8-weight", "calibration": None},
        ValueError,
        "target 0.1 is measured on calibration batches",
    ),
    ({"target": 0.0}, ValueError, "with 0 of 3 layers in full precision the loss is still .*above"),
]


@pytest.mark.parametrize(("change", "kind", "message"), REFUSED)
def test_bad_input_is_one_clear_line_and_changes_nothing(change, kind, message):
    model = gated()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {"recipe": "fp8", "calibration": BATCHES} | change
    with pytest.raises(kind, match=message) as raised:
        us.deploy.quantize(model, given.pop("recipe"), given.pop("calibration"), **given)
    assert "\n" not in str(raised.value)
    assert not quantized_layers(model)
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_models_that_cannot_be_quantized():
    with pytest.raises(ValueError, match="itself the layer"):
        us.deploy.quantize(nn.Linear(4, 4), "fp8-weight")
    with pytest.raises(ValueError, match="LayerNorm has no layer to quantize: no module"):
        us.deploy.quantize(nn.LayerNorm(4), "fp8-weight")
    model = gated()
    with torch.no_grad():
        model.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="weight of 'up_proj' holds NaN or infinity"):
        us.deploy.quantize(model, "fp8-weight")
    model = us.deploy.quantize(gated(), "fp8-weight")
    with pytest.raises(ValueError, match="quantized already"):
        us.deploy.quantize(model, "int8-weight")
    with pytest.raises(ValueError, match="Gated is not quantized"):
        us.deploy.quantization(gated())
    with pytest.raises(ValueError, match="returns a SimpleNamespace without a tensor"):
        us.deploy.quantize(Held(), "fp8", BATCHES, target=0.1)


def test_weights_without_memory():
    with torch.device("meta"):
        model = Gated()
    with pytest.raises(ValueError, match="weight of 'gate_proj' has no memory yet"):
        us.deploy.quantize(model, "fp8-weight")


def test_a_compiled_model_is_quantized_inside():
    model = torch.compile(gated(), backend="eager")
    plain = model(inputs()).detach()
    us.deploy.quantize(model, "fp8", BATCHES)
    expected = us.deploy.quantize(gated(), "fp8", BATCHES)(inputs())
    assert torch.equal(model(inputs()), expected)
    assert not torch.equal(plain, expected)


def test_a_forward_of_ones_own_is_kept_under_the_switch():
    model = gated()
    model.forward = lambda x: 2 * torch.softmax(Gated.forward(model, x), -1)
    us.deploy.quantize(model, "fp8", BATCHES, also=("softmax",))
    total = model(inputs()).sum(-1)
    # Each of 16 probabilities, rounded by at most 2**-4 of itself.
    assert torch.allclose(total, torch.full((4,), 2.0), rtol=2.0**-4)
    assert not torch.allclose(total, torch.full((4,), 2.0), rtol=1e-6)


def test_a_scaled_model_is_not_calibrated():
    model = evaluated(gated())
    with pytest.raises(
        ValueError, match=r"scaled by recipe 'fp8-serve'; call us\.unscale.* or leave"
    ):
        us.deploy.quantize(model, "fp8", BATCHES)
    us.unscale(model)
    us.apply_recipe(model, "fp8-current")
    with pytest.raises(ValueError, match=r"scaled by recipe 'fp8-current'; call us\.unscale"):
        us.deploy.quantize(model, "fp8")
    us.unscale(model)
    us.unit_scale(model, "fp8-serve")
    with pytest.raises(ValueError, match="'gate_proj' and 2 other layers have no unit"):
        us.deploy.quantize(model, "fp8")


def test_layers_that_calibration_does_not_reach():
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model.forward = lambda x: model.a(x)
    with pytest.raises(ValueError, match="'b' and 0 other layers never ran"):
        us.deploy.quantize(model, "fp8", BATCHES)
    us.deploy.quantize(model, "fp8", BATCHES, skip=["b"])
    assert list(quantized_layers(model)) == ["a"]
