import torch
import torch.nn.functional as F

from scaling.measure import assert_unit, rms
from unitscale.scaling.factors import norm_factors

ROWS, FEATURES = 512, 256


def test_layer_norm_is_unit():
    """256 gain entries: 5 standard errors are .22."""
    got = norm_factors(ROWS)
    assert_unit(
        lambda x, w, b: F.layer_norm(x, (FEATURES,), w, b),
        (torch.randn(ROWS, FEATURES), torch.ones(FEATURES), torch.zeros(FEATURES)),
        got.output_scale,
        (got.grad_input_scale, got.grad_weight_scale, got.grad_bias_scale),
        rel=0.22,
    )


def test_gradient_shrinks_with_the_input_it_normalizes():
    x = (4 * torch.randn(ROWS, FEATURES)).requires_grad_()
    (grad,) = torch.autograd.grad(F.rms_norm(x, (FEATURES,)), x, torch.randn(ROWS, FEATURES))
    assert abs(rms(grad) * norm_factors(ROWS).grad_input_scale - 0.25) < 0.01
