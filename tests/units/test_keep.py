"""Codes of what backward needs, and functions computed again from them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unitscale as us
from unitscale.formats import E4M3FN
from unitscale.formats.granularity import PerBlock, PerTile
from unitscale.units.keep import again, at_points, codes, pays, point_like

GROUPS = "E4M3FN current 1x16"


def massive() -> Tensor:
    """A residual stream with one token 2^16 times the others, as language models have them."""
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    x[3] *= 2**16
    return x


def test_groups_are_better_than_one_scale_for_a_tensor() -> None:
    """The ablation of the paper: the gradient of a norm, of the tokens that are not large."""
    x = massive().requires_grad_()
    grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))

    def gradient(text: str) -> Tensor:
        y = again(lambda t: F.rms_norm(t, (64,)), text, (codes(x, text),), x)
        return torch.autograd.grad(y, x, grad)[0]

    (exact,) = torch.autograd.grad(F.rms_norm(x, (64,)), x, grad)
    rest = torch.arange(32) != 3
    groups, tensor = (
        ((gradient(text) - exact)[rest].norm() / exact[rest].norm()).item()
        for text in (GROUPS, "E4M3FN current")
    )
    # Beside 2^16 a value of 1 is at 448 / 2^16 / 3 = 2^-9, where a step of E4M3FN is 2^-9 too.
    assert groups < 2**-6
    assert tensor > 4 * groups


def test_groups_within_a_token_are_better_than_tiles_over_tokens() -> None:
    """Where a token is large 1x16 keeps its neighbors, 4x4 of four tokens does not."""
    x = massive()
    tiles = us.formats.Codec(format=E4M3FN, granularity=PerTile(4, 4))
    groups, tiled = (
        ((value - x)[:3].norm() / x[:3].norm()).item()
        for value in (point_like(codes(x, GROUPS), GROUPS, x), tiles.round(x))
    )
    assert tiled > 2 * groups


def test_scale_of_groups_is_the_amax_to_bf16() -> None:
    x = torch.randn(8, 64)
    data, scale = codes(x, GROUPS)
    assert (data.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.bfloat16, (8, 4))
    want = x.unflatten(-1, (4, 16)).abs().amax(-1) / 448
    torch.testing.assert_close(scale.float(), want, rtol=2**-8, atol=0)
    whole, own = codes(x, "E4M3FN current")
    assert own is not None
    assert own.item() == pytest.approx(x.abs().max().item() / 448, rel=1e-6)
    assert whole.shape == x.shape


def test_a_scale_that_is_a_power_of_two_is_held_in_a_byte() -> None:
    x, text = torch.randn(8, 64) * 1e-3, "E4M3FN current rceil 1x16"
    data, scale = codes(x, text)
    assert scale is not None
    assert scale.dtype == torch.uint8
    want = us.formats.Codec(format=E4M3FN, granularity=PerBlock(16), power_of_two="rceil").round(x)
    assert torch.equal(point_like((data, scale), text, x), want)


def test_zeros_nan_and_short_groups() -> None:
    x = torch.zeros(2, 20)
    x[1, 17] = 3.0
    got = point_like(codes(x, GROUPS), GROUPS, x)
    torch.testing.assert_close(got, x, rtol=2**-8, atol=0)
    x[0, 3] = torch.nan
    got = point_like(codes(x, GROUPS), GROUPS, x)
    assert got[0, :16].isnan().all()
    assert got[0, 16:].eq(0).all()


def test_an_axis_of_few_values_is_held_as_it_is() -> None:
    assert pays((4, 64), 2, GROUPS)
    assert not pays((4, 1), 2, GROUPS)
    assert not pays((), 2, GROUPS)
    assert pays((4, 1), 2, "E4M3FN current")


def test_a_number_is_held_as_it_is() -> None:
    """It has no axis to form groups along."""
    assert not pays((), 4, GROUPS)

    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.layer(x)
            return (F.gelu(h) * F.gelu(h.sum())).sum()

    model = us.apply_recipe(Gated(), "coat", inner="eager")
    model(torch.randn(4, 32)).backward()
    assert model.layer.weight.grad.isfinite().all()


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(4, 16, requires_grad=True)
    for y in (
        again(torch.tanh, GROUPS, (codes(x, GROUPS),), x),
        at_points(torch.tanh, 1, x, x.detach()),
    ):
        (g,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(g, 1 - x.detach().tanh() ** 2, rtol=0.2, atol=0.05)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(
            again(torch.tanh, GROUPS, (codes(x, GROUPS),), x).sum(), x, create_graph=True
        )
