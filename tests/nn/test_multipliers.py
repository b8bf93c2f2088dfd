"""u-muP's multipliers of modules: at 1 no bit changes, and elsewhere factors stay right."""

import copy

import pytest
import torch
from torch import Tensor, nn

import unitscale.functional as U
from unitscale import nn as unn
from validity import assert_valid_gradients

MULTS = (0.25, 1.0, 4.0)
ACTIVATIONS = (unn.GELU, unn.SiLU, unn.Tanh, unn.Sigmoid, unn.ReLU, unn.Softplus)
SHARE = 3 * (3 / 2**18) ** 0.5  # 3 standard errors of an RMS over 2^18, kurtosis up to 12


def rms(x: Tensor) -> float:
    return x.detach().double().square().mean().sqrt().item()


def measured(module: nn.Module, x: Tensor, center: str = "std") -> tuple[float, float]:
    """Scale of the output, and of the input's gradient for a unit output gradient."""
    x = x.requires_grad_()
    y = module(x)
    y.backward(torch.randn_like(y))
    return rms(y - y.mean() if center == "std" else y), rms(x.grad)


@pytest.mark.parametrize("mult", MULTS)
@pytest.mark.parametrize("cls", ACTIVATIONS, ids=lambda cls: cls.__name__)
def test_activation_keeps_unit_scale(cls: type, mult: float) -> None:
    module = cls(mult=mult, constraint=None)
    output, grad = measured(module, torch.randn(2**18))
    assert output == pytest.approx(1, abs=SHARE)
    assert grad == pytest.approx(1, abs=SHARE)


def test_activation_without_its_multiplier_would_not() -> None:
    output, _ = measured(unn.GELU(constraint=None), 4 * torch.randn(2**18))
    assert output > 3


@pytest.mark.parametrize("mult", MULTS)
def test_softmax_keeps_unit_scale(mult: float) -> None:
    # Rows of a sharp softmax are decided by their largest entry, so their RMS has a wide spread:
    # at 4 the mean square of 4096 rows varies by 1.6 % (measured over 8 seeds), of its root by 0.8.
    module = unn.Softmax(-1, mult=mult, constraint=None)
    output, grad = measured(module, torch.randn(4096, 64), center="rms")
    assert output == pytest.approx(1, abs=0.03)
    assert grad == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("mult", MULTS)
@pytest.mark.parametrize("gated", [False, True])
def test_mlp_keeps_unit_scale(mult: float, gated: bool) -> None:
    mlp = unn.MLP(128, 512, "silu", gated=gated, mult=mult)
    x = torch.randn(1024, 128, requires_grad=True)
    y = mlp(x)
    y.backward(torch.randn_like(y))
    # The bounds of the same test at 1: the activation's mean adds to the second moment, a gated
    # layer's input feeds two layers.
    assert 0.9 < y.std() < 1.25
    assert all(0.6 < rms(p.grad) < 1.25 for p in mlp.parameters())


@pytest.mark.parametrize("mult", MULTS)
def test_attention_keeps_unit_scale(mult: float) -> None:
    layer = unn.MultiheadAttention(256, 4, bias=False, batch_first=True, mult=mult)
    # The factor is that of independent query, key and value, so three tensors, not one.
    query, key, value = torch.randn(3, 8, 128, 256)
    y, _ = layer(query, key, value)
    y.backward(torch.randn_like(y))
    # The averages over 128 keys are nearly those of 8 sequences: 2048 normals through a layer,
    # whose RMS has a standard error of 3 % (measured over 5 seeds).
    assert rms(y) == pytest.approx(1, abs=0.1)
    assert rms(layer.v_proj.weight.grad) == pytest.approx(1, abs=0.1)
    # Tied to the output, the gradients of query and key are `mult / sqrt(head_dim)`.
    for projection in (layer.q_proj, layer.k_proj):
        assert rms(projection.weight.grad) == pytest.approx(mult / 8, rel=0.05)


@pytest.mark.parametrize("mult", [2.0, 8.0, 32.0])
def test_attention_with_a_factor_for_each_edge_is_unit_at_any_sharpness(mult: float) -> None:
    """8 gives logits of scale 1, 32 of scale 4, where few keys are attended."""
    operands = [torch.randn(16, 4, 128, 64, requires_grad=True) for _ in range(3)]
    y = U.scaled_dot_product_attention(*operands, mult=mult, constraint=None)
    y.backward(torch.randn_like(y))
    # 64 sequences of 64 features: a standard error of about 1.2 %, measured over 3 seeds.
    for tensor in (y, *(operand.grad for operand in operands)):
        assert rms(tensor) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("mult", MULTS)
@pytest.mark.parametrize("loss", [unn.CrossEntropyLoss, unn.BCEWithLogitsLoss])
def test_loss_keeps_a_unit_gradient_and_multiplies_logits(loss: type, mult: float) -> None:
    classes = loss is unn.CrossEntropyLoss
    target = torch.randint(64, (512,)) if classes else torch.rand(512, 64).round()
    for spread in (0.0, 64**-0.5):  # a read-out's logits at the start
        logits = (spread * torch.randn(512, 64)).requires_grad_()
        value = loss(mult=mult)(logits, target)
        value.backward()
        torch.testing.assert_close(value, loss()(mult * logits, target))
        # p - onehot grows as logits do: by mult^2 / 64 in its mean square where it is not 0.
        assert rms(logits.grad) == pytest.approx(1, abs=0.01 + (mult * spread) ** 2 / 2)


OPTIONS = ("ffn_act_mult", "attn_softmax_mult", "residual_mult", "residual_attn_ratio")


def decoder(seed: int = 0, **options: float) -> nn.Module:
    torch.manual_seed(seed)
    return unn.TransformerDecoder(2, 16, 2, **options)


def test_all_at_one_change_no_bit_and_each_changes_something() -> None:
    x = torch.randn(2, 6, 16)
    plain = decoder()(x)
    assert torch.equal(decoder(**dict.fromkeys(OPTIONS, 1.0))(x), plain)
    for option in OPTIONS:
        assert not torch.allclose(decoder(**{option: 2.0})(x), plain), option
    logits, target = torch.randn(4, 5), torch.randint(5, (4,))
    assert torch.equal(
        unn.CrossEntropyLoss(mult=1.0)(logits, target), unn.CrossEntropyLoss()(logits, target)
    )


class LM(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embedding, self.body = unn.Embedding(11, 16), body
        self.readout, self.loss = unn.LinearReadout(16, 11), unn.CrossEntropyLoss(mult=3.0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.loss(self.readout(self.body(self.embedding(ids))).flatten(0, 1), ids.flatten())


def test_gradients_are_valid_with_all_of_them() -> None:
    model = LM(decoder(**dict.fromkeys(OPTIONS, 2.0), gated=True))
    assert_valid_gradients(model.double(), torch.randint(11, (3, 8)))


@pytest.mark.parametrize("depth", [4, 24])
@pytest.mark.parametrize("mult", MULTS)
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_multipliers_of_alternating_are_its_own(depth: int, mult: float, ratio: float) -> None:
    ours = unn.Multipliers(scheme=unn.Alternating(), residual_mult=mult, residual_attn_ratio=ratio)
    theirs = unn.Alternating(alpha_res=mult, alpha_res_attn_ratio=ratio)
    for index in range(depth):
        assert ours.tau(index, depth) == pytest.approx(theirs.tau(index, depth), rel=1e-12)


@pytest.mark.parametrize("scheme", [unn.RunningMean(), unn.Ratio(ratio=0.5), unn.Fixed(share=0.3)])
def test_multipliers_keep_their_ratios_under_any_scheme(scheme: object) -> None:
    def shares(scheme: object) -> tuple[float, float, float]:
        """Shares of variance: input, attention, MLP."""
        parts = [1.0]
        for index in range(8):
            b = (tau := scheme.tau(index, 8)) ** 2 / (1 + tau**2)
            parts = [part * (1 - b) for part in parts] + [b]
        return parts[0], sum(parts[1::2]), sum(parts[2::2])

    x, attention, mlp = shares(scheme)
    got = shares(unn.Multipliers(scheme=scheme, residual_mult=2.0, residual_attn_ratio=3.0))
    m = 4 * 2 / (1 + 9)
    assert got[2] / got[0] == pytest.approx(m * mlp / x)
    assert got[1] / got[0] == pytest.approx(9 * m * attention / x)


def test_multipliers_stay_finite_in_a_deep_stack() -> None:
    scheme = unn.Multipliers(scheme=unn.Fixed(), residual_mult=2.0)
    # With shares of one half the input has vanished by then, and all that is left is multiplied.
    assert scheme.tau(4000, 4001) == pytest.approx(1, rel=1e-12)


def test_modules_of_older_pickles_have_no_multiplier() -> None:
    x = torch.randn(4, 8)
    for module in (unn.GELU(), unn.Softmax(-1), unn.MLP(8)):
        old = copy.deepcopy(module)
        del old.__dict__["mult"]
        assert torch.equal(old(x), module(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda mult: unn.GELU(mult=mult),
        lambda mult: unn.Softmax(-1, mult=mult),
        lambda mult: unn.MLP(8, mult=mult),
        lambda mult: unn.MultiheadAttention(8, 2, mult=mult),
        lambda mult: unn.CrossEntropyLoss(mult=mult),
        lambda mult: unn.TransformerLayer(8, 2, attn_softmax_mult=mult),
        lambda mult: unn.TransformerLayer(8, 2, residual_mult=mult),
    ],
)
@pytest.mark.parametrize("mult", [0, -1.0, float("inf"), float("nan"), True, "2"])
def test_bad_multiplier_is_named(build: object, mult: object) -> None:
    with pytest.raises(ValueError, match=rf"mult is {mult!r}; expected a positive number"):
        build(mult)


def test_bad_multiplier_of_a_function_is_named() -> None:
    with pytest.raises(ValueError, match=r"cross_entropy: mult is -1\.0; expected a positive"):
        U.cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), mult=-1.0)


def test_repr_shows_it() -> None:
    assert "mult=2.0" in repr(unn.GELU(mult=2.0))
    assert "mult" not in repr(unn.GELU())
