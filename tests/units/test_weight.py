"""Every weight of a model is weighed, or named with the reason why not."""

import pytest
import torch
from torch import nn

from unitscale.gemm.payoff import Shape
from unitscale.units.weight import (
    CONVOLUTION,
    EXPERTS,
    LOOKED_UP,
    RECURRENT,
    UNKNOWN,
    Weights,
    weights_of,
)


class Conv1D(nn.Module):
    """As transformers has it: weight [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 18))


def why(found: Weights) -> dict[str, str]:
    return {one.name: one.why for one in found.left_out}


def assert_all_are_told(model: nn.Module, found: Weights) -> None:
    """Every element of a parameter of two axes is weighed or left out."""
    wide = {id(p): p.numel() for p in model.parameters() if p.dim() > 1}
    assert found.elements + sum(one.elements for one in found.left_out) == sum(wide.values())


def test_assert_all_are_told_sees_what_is_missing() -> None:
    with pytest.raises(AssertionError):
        assert_all_are_told(nn.Linear(3, 2), Weights(layers=[], left_out=[], elements=0))


def test_layers_are_found_with_their_sizes() -> None:
    model = nn.Sequential(nn.Embedding(7, 6), Conv1D(), nn.Linear(6, 4), nn.LayerNorm(4))
    found = weights_of(model, 10)
    assert found.layers == [("1", Shape(10, 6, 18)), ("2", Shape(10, 6, 4))]
    assert why(found) == {"0.weight": LOOKED_UP}
    assert_all_are_told(model, found)


def test_attention_has_its_projections() -> None:
    model = nn.MultiheadAttention(8, 2)
    found = weights_of(model, 10)
    assert found.layers == [("in_proj_weight", Shape(10, 8, 24)), ("out_proj", Shape(10, 8, 8))]
    other = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert [shape.k for _, shape in weights_of(other, 10).layers] == [8, 4, 6, 8]
    assert_all_are_told(other, weights_of(other, 10))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: nn.Conv2d(3, 8, 3), CONVOLUTION),
        (lambda: nn.ConvTranspose1d(3, 8, 3), CONVOLUTION),
        (lambda: nn.LSTM(4, 4), RECURRENT),
        (lambda: nn.GRUCell(4, 4), RECURRENT),
        (lambda: nn.Bilinear(3, 4, 5), UNKNOWN),
    ],
)
def test_what_is_left_out_is_named_beside_a_linear_layer(made, reason) -> None:
    model = nn.Sequential(made(), nn.Linear(4, 4))
    found = weights_of(model, 10)
    assert [name for name, _ in found.layers] == ["1"]
    assert set(why(found).values()) == {reason}
    assert_all_are_told(model, found)


class Experts(nn.Module):
    """As in transformers: [E, out, in], or turned around as in GPT-OSS."""

    def __init__(self, is_turned: bool) -> None:
        super().__init__()
        self.hidden_size = 6
        shapes = ((4, 6, 10), (4, 5, 6)) if is_turned else ((4, 10, 6), (4, 6, 5))
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.empty(s)) for s in shapes)
        self.gate_up_proj_bias = nn.Parameter(torch.empty(4, 10))


class TopKRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top_k = 2
        self.weight = nn.Parameter(torch.empty(4, 6))


@pytest.mark.parametrize("is_turned", [False, True])
def test_experts_share_the_rows(is_turned: bool) -> None:
    model = nn.ModuleDict({"gate": TopKRouter(), "experts": Experts(is_turned)})
    found = weights_of(model, 32)
    assert found.left_out == []
    assert found.layers == [
        ("gate", Shape(32, 6, 4)),
        *((f"experts.gate_up_proj[{i}]", Shape(16, 6, 10)) for i in range(4)),
        *((f"experts.down_proj[{i}]", Shape(16, 5, 6)) for i in range(4)),
    ]


def test_experts_without_a_number_for_each_token_are_left_out() -> None:
    found = weights_of(nn.ModuleDict({"experts": Experts(False)}), 32)
    assert set(why(found).values()) == {EXPERTS}


def test_experts_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        num_hidden_layers=1,
        hidden_size=64,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=256,
    )
    with torch.device("meta"):
        model = transformers.Qwen3MoeForCausalLM(config)
    found = weights_of(model, 128)
    shapes = dict(found.layers)
    assert shapes["model.layers.0.mlp.experts.gate_up_proj[7]"] == Shape(32, 64, 64)
    assert shapes["model.layers.0.mlp.experts.down_proj[0]"] == Shape(32, 32, 64)
    assert list(why(found)) == ["model.embed_tokens.weight"]
    assert_all_are_told(model, found)
