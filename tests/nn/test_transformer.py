"""MLP, layer and stack: unit scale, valid gradients, causality."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import unitscale.functional as U
from unitscale import nn as unn
from validity import assert_valid_gradients

PLACEMENTS = ("pre", "post", "none", "res-post")
SCHEMES = (unn.Fixed(), unn.RunningMean(), unn.Ratio(ratio=0.5), unn.Alternating(alpha_res=2.0))


class LM(nn.Module):
    """Embedding, decoder, norm and read-out, to give a decoder leaves before and after it."""

    def __init__(self, decoder: nn.Module, width: int = 16, tie: str | None = None) -> None:
        super().__init__()
        self.embedding = unn.Embedding(11, width)
        self.decoder = decoder
        self.norm = unn.LayerNorm(width)
        constraint = "to_output_scale" if tie == "constrained" else None
        self.readout = unn.LinearReadout(width, 11, constraint=constraint)
        if tie:
            self.readout.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.readout(self.norm(self.decoder(self.embedding(ids))))
        return U.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def ids() -> Tensor:
    return torch.randint(11, (3, 8))


@pytest.mark.parametrize(("placement", "scheme"), list(itertools.product(PLACEMENTS, SCHEMES)))
def test_decoder_has_valid_gradients(placement: str, scheme: unn.residual.Scheme) -> None:
    decoder = unn.TransformerDecoder(2, 16, 2, placement=placement, scheme=scheme, bias=True)
    assert_valid_gradients(LM(decoder).double(), ids())


@pytest.mark.parametrize(
    "options",
    [
        {"gated": True, "activation": "silu"},
        {"gated": True, "activation": "gelu", "bias": True},
        {"num_kv_heads": 1},
        {"norm": unn.RMSNorm},
        {"dropout": 0.2},
        {"is_causal": False},
        {"dim_feedforward": 24, "activation": "relu"},
    ],
    ids=str,
)
def test_decoder_options_have_valid_gradients(options: dict) -> None:
    assert_valid_gradients(LM(unn.TransformerDecoder(2, 16, 2, **options)).double(), ids())


def test_free_attention_is_invalid() -> None:
    """q, k and v come from one tensor, so their edges must be tied."""
    layer = unn.TransformerLayer(16, 2)
    layer.attention.body.attention.constraint = None
    with pytest.raises(AssertionError, match="cosine"):
        assert_valid_gradients(LM(layer).double(), ids())


def test_tied_readout_is_valid_if_free() -> None:
    """The free read-out's input factor and the embedding's weight factor cancel like a pair's."""
    targets = ids()
    tied = TiedLM("free").double()
    assert tied.readout.weight is tied.embedding.weight
    assert_valid_gradients(tied, targets)
    with pytest.raises(AssertionError, match=r"embedding\.weight: cosine"):
        assert_valid_gradients(TiedLM("constrained").double(), targets)


class TiedLM(LM):
    """Every position is embedded and read out, so that both uses of the table see equal rows."""

    def __init__(self, tie: str) -> None:
        super().__init__(unn.TransformerDecoder(2, 16, 2), tie=tie)

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.readout(self.norm(self.decoder(self.embedding(ids))))
        return U.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten())


@pytest.mark.parametrize("expansion", [2, 4, 16])
@pytest.mark.parametrize("gated", [False, True])
def test_mlp_has_unit_scale_at_any_expansion(expansion: int, gated: bool) -> None:
    mlp = unn.MLP(128, 128 * expansion, "silu", gated=gated)
    x = torch.randn(512, 128, requires_grad=True)
    y = mlp(x)
    y.backward(torch.randn_like(y))
    rms = {name: p.grad.square().mean().sqrt().item() for name, p in mlp.named_parameters()}
    assert 0.9 < y.std() < 1.15  # the activation's mean adds to the second moment
    assert all(0.8 < value < 1.25 for value in rms.values()), rms
    # Plain: SiLU's gradient has the output's factor, 1.787 for 1.623. Gated: the input feeds two
    # layers, whose gradients add up.
    expected = 1.44 if gated else 1.787 / 1.623
    assert x.grad.square().mean().sqrt() == pytest.approx(expected, rel=0.05)


def test_decoder_looks_back_only() -> None:
    decoder = unn.TransformerDecoder(2, 16, 2)
    x = torch.randn(2, 8, 16)
    before = decoder(x)
    x[:, 5:] += torch.randn(16)
    torch.testing.assert_close(decoder(x)[:, :5], before[:, :5])


def test_decoder_counts_its_branches() -> None:
    decoder = unn.TransformerDecoder(3, 16, 2)
    assert decoder.layers.depth == 6
    taus = [m.tau for m in decoder.modules() if isinstance(m, unn.Residual)]
    assert taus == pytest.approx([(index + 1) ** -0.5 for index in range(6)])


def test_decoder_compiles_to_one_graph() -> None:
    model = LM(unn.TransformerDecoder(2, 16, 2, gated=True))
    batch = ids()
    model(batch).backward()
    eager = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.compile(model, backend="aot_eager", fullgraph=True)(batch).backward()
    for parameter, gradient in zip(model.parameters(), eager, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'swish'; use relu, gelu, silu"):
        unn.MLP(8, activation="swish")


def test_unknown_placement_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown norm placement 'mid'"):
        unn.TransformerLayer(8, 2, placement="mid")
