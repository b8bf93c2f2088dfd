"""Which layers lose most, what is put back, and the parts that stay high by default."""

import copy

import pytest
import torch
from torch import nn

import unitscale as us
from deploy.small import inputs
from deploy.tiny import ids, logits, made
from unitscale import deploy
from unitscale.deploy.distance import mean_distance, picked
from unitscale.deploy.quantized import quantized_layers

X = inputs()


class Sensitive(nn.Module):
    """Three layers, of which the middle one gets an outlier that INT8 does not hold."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.outlier, self.last = (nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.outlier.weight[:, 0] /= 1000

    def forward(self, x):
        x = torch.relu(self.first(x))
        gain = torch.ones(16)
        gain[0] = 1000
        return self.last(torch.relu(self.outlier(x.abs() * gain + 1)))


def test_the_worst_layer_is_first_and_the_model_stays():
    model = Sensitive()
    before = model(X)
    found = us.deploy.sensitivity(model, "int8", [X])
    assert found.rows[0].path == "outlier"
    assert found.rows[0].loss > 2 * found.rows[1].loss
    assert {row.parameters for row in found.rows} == {256}
    assert not quantized_layers(model)
    assert torch.equal(model(X), before)
    text = str(found)
    assert text.startswith("int8: 1 - cosine of the output to full precision; all together")
    assert text.splitlines()[2].split()[0] == "outlier"


def test_a_row_is_the_loss_of_that_layer_alone():
    model = Sensitive()
    found = us.deploy.sensitivity(model, "int8", [X], metric="kl")
    alone = us.deploy.quantize(copy.deepcopy(model), "int8", [X], skip=["first", "last"])
    with torch.no_grad():
        expected = mean_distance([model(X)], [alone(X)], "kl")
    assert found.rows[0].loss == pytest.approx(expected, rel=1e-12)
    whole = us.deploy.quantize(copy.deepcopy(model), "int8", [X])
    with torch.no_grad():
        assert found.together == pytest.approx(mean_distance([model(X)], [whole(X)], "kl"))


def test_the_worst_layers_are_put_back_until_the_target_is_met():
    model = Sensitive()
    loss = us.deploy.sensitivity(model, "int8", [X])
    target = (loss.rows[0].loss + loss.rows[1].loss) / 2
    us.deploy.quantize(model, "int8", [X], target=target)
    assert list(quantized_layers(model)) == ["first", "last"]
    assert type(model.outlier) is nn.Linear
    kept = us.deploy.quantization(model).kept
    assert kept["outlier"].startswith("put back to meet the target")


def test_layers_that_servers_join_are_put_back_together():
    model, batch = made("llama"), [{"input_ids": ids()}]
    found = deploy.sensitivity(model, "fp8", batch, spare=("*lm_head", "*o_proj", "*down_proj"))
    target = found.together * 0.9
    options = {"spare": ("*lm_head", "*o_proj", "*down_proj"), "target": target, "most": 0.9}
    deploy.quantize(model, "fp8", batch, **options)
    quantized = {path.rpartition(".")[2] for path in quantized_layers(model)}
    assert quantized in ({"gate_proj", "up_proj"}, {"q_proj", "k_proj", "v_proj"})


def test_what_is_put_back_at_most_counts_layers():
    from unitscale.deploy.fallback import accumulated

    groups = {"q": ["k", "q"], "k": ["k", "q"]}
    assert list(accumulated(["a", "k", "q", "b"], groups)) == [
        ["a"],
        ["a", "k", "q"],
        ["a", "k", "q", "b"],
    ]


def test_nothing_is_put_back_where_the_target_is_met():
    model = us.deploy.quantize(Sensitive(), "int8", [X], target=1.0)
    assert len(quantized_layers(model)) == 3


def test_softmax_and_gelu_stay_high_unless_switched():
    batch = [{"input_ids": ids()}]
    found = us.deploy.sensitivity(made("bert"), "fp8", batch, also=("softmax", "gelu", "attention"))
    plain = us.deploy.sensitivity(made("bert"), "fp8", batch)
    losses = {row.path: row.loss for row in found.rows}
    assert all(losses[part] > 0 for part in ("softmax", "gelu", "attention"))
    assert not {"softmax", "gelu", "attention"} & {row.path for row in plain.rows}
    assert found.together != plain.together


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_switched_model_keeps_its_switch(attention):
    model = made("llama")
    model.set_attn_implementation(attention)
    us.deploy.quantize(model, "fp8", [{"input_ids": ids()}])
    without = logits(model, ids())
    model = made("llama")
    model.set_attn_implementation(attention)
    us.deploy.quantize(model, "fp8", [{"input_ids": ids()}], also=("softmax", "attention"))
    given = logits(model, ids())
    assert not torch.equal(given, without)
    assert torch.equal(logits(copy.deepcopy(model), ids()), given)
    assert us.deploy.quantization(model).also == ("softmax", "attention")


def test_attention_in_steps_is_attention():
    """In FP16, which moves little, the steps give what torch's fused attention gives."""
    from unitscale.deploy.scheme import Scheme
    from unitscale.deploy.switch import rounding
    from unitscale.formats import FP16, Codec

    wide = Scheme(name="wide", weight=Codec(format=FP16), input=Codec(format=FP16))
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    attend = nn.functional.scaled_dot_product_attention
    masks = torch.rand(2, 1, 6, 6) > 0.2
    masks |= torch.eye(6, dtype=torch.bool)
    for options in ({"is_causal": True}, {"attn_mask": masks}, {"attn_mask": 20.0 * masks}):
        expected = attend(q, k, v, enable_gqa=True, **options)
        with rounding(("attention",), wide):
            given = attend(q, k, v, enable_gqa=True, **options)
        # Each of q, k, v and p is off by 2**-11, and scores are sums of 8 terms of up to 10.
        assert torch.allclose(given, expected, rtol=0, atol=8 * 10 * 2.0**-11)
        assert not torch.equal(given, expected)
        assert not torch.allclose(attend(q, k, v, enable_gqa=True), expected, atol=0.5)


def test_injected_outlier_breaks_int8_and_not_fp8():
    """A norm's gain times 64 and the columns after it over 64: the same function."""
    batch = [{"input_ids": ids()}]
    lost = {}
    for factor in (1.0, 64.0):
        for recipe in ("int8-tensor", "fp8-tensor"):
            model = made("llama")
            plain = logits(model, ids())
            inject(model, factor)
            assert torch.allclose(logits(model, ids()), plain, rtol=0, atol=1e-6)
            us.deploy.quantize(model, recipe, batch)
            lost[recipe, factor] = mean_distance([plain], [logits(model, ids())], "cosine")
    # Powers of two move floats along their binades: only what turns subnormal is lost.
    assert abs(lost["fp8-tensor", 64.0] - lost["fp8-tensor", 1.0]) < 0.01
    assert lost["int8-tensor", 64.0] > 100 * lost["int8-tensor", 1.0]


def inject(model, factor):
    layer = model.model.layers[0]
    with torch.no_grad():
        for norm, parts in (
            (layer.input_layernorm, ("q_proj", "k_proj", "v_proj")),
            (layer.post_attention_layernorm, ("gate_proj", "up_proj")),
        ):
            norm.weight[0] *= factor
            for name in parts:
                owner = layer.self_attn if name in ("q_proj", "k_proj", "v_proj") else layer.mlp
                getattr(owner, name).weight[:, 0] /= factor


def test_distances():
    p = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert mean_distance([p], [p], "cosine") == mean_distance([p], [p], "kl") == 0
    assert mean_distance([p[:1]], [-p[:1]], "cosine") == 2
    # KL of (e, 1) / (e + 1) and its mirror: tanh(1 / 2).
    assert mean_distance([p[:1]], [p[:1].flip(1)], "kl") == pytest.approx(0.46211715726)
    assert mean_distance([p], [p * torch.nan], "kl") == float("inf")


def test_the_tensor_that_counts():
    x, y = torch.randn(2, 3), torch.tensor(1.0)
    assert picked(x) is picked((x, y)) is picked({"loss": y, "states": x}) is x
    assert picked([None, x]) is x


def test_a_target_that_leaves_nothing_quantized_is_said():
    model = Sensitive()
    with torch.no_grad():
        expected = model(X)
    with pytest.warns(UserWarning, match="all 3 layers were put back to meet the target 1e-12"):
        us.deploy.quantize(model, "int8", [X], target=1e-12, most=1.0)
    with torch.no_grad():
        assert model(X).equal(expected)
    found = us.deploy.quantization(model)
    assert (found.rows, len(found.kept), found.bytes) == ((), 3, 0)
    assert str(found).startswith("int8: no layer is quantized\n  full precision: ")
    with pytest.raises(ValueError, match="is not quantized"):
        us.deploy.quantization(Sensitive())
