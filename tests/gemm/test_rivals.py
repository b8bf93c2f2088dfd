"""What the specification of each rival calls working (sections B.8 and D.8), with its figures."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gemm.edges import values_and_gradients
from gemm.test_six_operands import FORMATS
from unitscale import gemm
from unitscale.formats import E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, Codec
from unitscale.gemm import operand, product, round_value
from unitscale.gemm.operand import Use, encode
from unitscale.recipes import RECIPES, PerAxis, PerBlock, PerTensor

AMAX, AMAX_FNUZ = RECIPES["fp8-amax"], RECIPES["fp8-amax-fnuz"]


def bias_of(text: str, amax: float) -> int:
    """The scaling bias of Perez et al.: data is `x * 2**bias`."""
    scale = encode(torch.tensor([amax, -amax / 3]), Use(text)).scale
    return -round(math.log2(scale.item()))


@pytest.mark.parametrize(
    ("amax", "value", "gradient"),
    [
        (1.0, 7, 12),  # floor(log2 240) = 7, floor(log2 57344) = 15, and three binades of margin
        (240.0, 0, 4),
        (240.1, -1, 4),
        (57344.0, -8, -3),
        (2.0**-20, 27, 32),
    ],
)
def test_the_bias_of_amax_is_that_of_the_table(amax, value, gradient):
    """B.8 (1). It is clipped at no 31: scales are float32 here, and go further."""
    assert bias_of(str(AMAX_FNUZ.value), amax) == value
    assert bias_of(str(AMAX_FNUZ.gradient), amax) == gradient


def test_an_all_zero_tensor_has_a_bias_too():
    encoded = encode(torch.zeros(4), Use(str(AMAX.value)))
    assert encoded.scale.isfinite()
    assert encoded.scale > 0
    assert (encoded.data == 0).all()


@pytest.mark.parametrize(
    ("text", "largest"),
    [
        (str(AMAX_FNUZ.value), E4M3FNUZ.max),
        (str(AMAX.value), E4M3FN.max),
        (str(AMAX_FNUZ.gradient), E5M2FNUZ.max / 8),
        (str(AMAX.gradient), E5M2.max / 8),
    ],
)
def test_the_largest_datum_is_in_the_last_binade_but_for_the_margin(text, largest):
    """B.8 (2): (120, 240] in E4M3FNUZ, and (57344 / 16, 57344 / 8] of a gradient in E5M2."""
    for exponent in range(-30, 30):
        x = torch.randn(200) * 1.37**exponent
        data, scale, _ = encode(x, Use(text))
        assert largest / 2 < (x / scale).abs().max() <= largest
        assert largest / 2 <= data.abs().max() <= largest  # which may round down to a half


@pytest.mark.parametrize("text", [str(AMAX.value), str(AMAX.gradient)])
def test_scaling_by_a_power_of_two_loses_nothing(text):
    """B.8 (3)."""
    x = torch.randint(-8, 9, (100,)).float()  # four bits
    x = x if "E4M3" in text else x.sign() * 2.0 ** torch.randint(-4, 4, (100,))
    for power in (-40, -3, 0, 17):
        assert torch.equal(round_value(x * 2.0**power, text), x * 2.0**power)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("fp8-amax", (0.055, 0.063)),  # 0.059 +- 0.004, B.8 (4)
        ("fp8-current", (0.053, 0.065)),  # 0.059 +- 0.006, D.8 (1)
        ("fp8-delayed", (0.053, 0.065)),
        ("fp8-rowwise", (0.034, 0.040)),  # E4M3 in all operands: as the output
        ("fp8-block", (0.034, 0.040)),
    ],
)
def test_errors_on_gaussian_data(name, gradient):
    """Relative Frobenius errors of the three products against float64; output 0.037 +- 0.003."""
    x, weight, grad = torch.randn(256, 256), torch.randn(192, 256), torch.randn(256, 192)
    run = lambda *args: gemm.linear(*args, formats=FORMATS[name])
    got = values_and_gradients(run, [x, weight], grad)
    true = values_and_gradients(F.linear, [x.double(), weight.double()], grad.double())
    output, *grads = ((a - b).norm() / b.norm() for a, b in zip(got, true, strict=True))
    assert 0.034 < output < 0.040
    assert all(gradient[0] < error < gradient[1] for error in grads)


def test_sums_of_large_constants_do_not_overflow():
    """B.8 (5): scales are applied before a sum in float32, so no sum of data overflows FP16."""
    x, weight = torch.full((1, 4096), 0.01).half(), torch.full((1, 4096), 0.02).half()
    data = encode(x, Use(str(AMAX.value))).data.float()
    assert data.sum() > 65504  # times a datum of the weight still more
    y = gemm.linear(x, weight, formats=FORMATS["fp8-amax"])
    assert y.item() == pytest.approx(4096 * 0.01 * 0.02, rel=2 * 2.0**-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fp8-amax", 3),  # B.8 (7): x, weight and gradient once each
        ("fp8-current", 3),
        ("fp8-block", 5),  # the weight alone is the same both ways
        ("fp8-rowwise", 6),
        ("mxfp8", 6),
        ("nvfp4", 5),
    ],
)
def test_a_tensor_is_rounded_once_where_both_products_take_it_alike(monkeypatch, name, count):
    calls = []

    def counted(*args):
        calls.append(args)
        return encode(*args)

    monkeypatch.setattr(operand, "encode", counted)
    monkeypatch.setattr(product, "encode", counted)
    x, weight = torch.randn(32, 64), torch.randn(48, 64)
    values_and_gradients(lambda *args: gemm.linear(*args, formats=FORMATS[name]), [x, weight])
    assert len(calls) == count


def errors_beside_an_outlier(codec: Codec) -> tuple[float, float]:
    """With channel 0 times 3,000: relative error and share that is zero, of the others."""
    x = torch.randn(512, 1024)
    x[:, 0] *= 3000
    y = codec.round(x)
    rest, found = x[:, 1:], y[:, 1:]
    return ((found - rest).norm() / rest.norm()).item(), (found == 0).float().mean().item()


FINER = {  # within the spread over four seeds; of a whole tensor they follow its largest outlier
    PerTensor(): (0.0271, 0.0175),
    PerAxis(): (0.0266, 0.0042),
    PerBlock(128): (0.0258, 0.00055),
    PerBlock(16): (0.0224, 0.00006),
}


def test_finer_scales_lose_less_beside_an_outlier():
    """D.8 (4): by tensor, row, 128 and 16; the order must hold, of errors and of what is lost."""
    found = [errors_beside_an_outlier(Codec(format=E4M3FN, granularity=g)) for g in FINER]
    for (error, lost), (wanted, share) in zip(found, FINER.values(), strict=True):
        assert error == pytest.approx(wanted, abs=1e-4)
        assert lost == pytest.approx(share, rel=0.08, abs=5e-5)
    for finer, coarser in zip(found[1:], found, strict=False):
        assert finer[0] < coarser[0]
        assert finer[1] < coarser[1]


def stochastic_mean(text: str, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(8, 64)
    values = torch.stack([round_value(x, text) for _ in range(draws)])
    return x, values.mean(0), values.std(0)


@pytest.mark.parametrize("text", ["E4M3FN current stochastic", "NVFP4 current stochastic"])
def test_stochastic_rounding_is_right_on_average(text):
    """Each mean of 400 draws is within five standard errors, 5 spacing / 2 / 20, of the value.

    A draw lies at one of two neighbors, so its deviation is at most half of their distance. The
    amax saturates nowhere: the largest of a group may lie below its own rounded scale, though.
    """
    draws = 400
    x, mean, deviation = stochastic_mean(text, draws)
    inside = deviation > 0
    off = (mean - x).abs()[inside]
    assert inside.float().mean() > 0.8
    spacing = 2 * deviation[inside].max()
    assert (off <= 5 * spacing / 2 / draws**0.5).all()
    nearest = round_value(x, text.replace(" stochastic", ""))
    assert ((nearest - x).abs()[inside] > 5 * spacing / 2 / draws**0.5).any()
