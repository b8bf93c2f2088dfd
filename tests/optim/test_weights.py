"""Weights in fewer bits than float32: exact halves, corrections, chance."""

import pytest
import torch

from optim.state_cases import BF16, FP32, adamw, assert_same_bits, parameters, run, snapshot
from unitscale.formats import FP16
from unitscale.formats.hashing import keys_of
from unitscale.formats.kernel import Bits
from unitscale.optim.arithmetic import amax_of
from unitscale.optim.moments import TensorScaled
from unitscale.optim.weights import Corrected, Master, Own, Split, Stochastic

NO_BITS = Bits()


def bits(seed=0, start=0):
    return Bits(keys_of(seed, torch.device("cpu")), start=start)


def through(codec, x, dtype=BF16, source=NO_BITS):
    """The weight as the parameter has it, and as the next step reads it."""
    written = codec.write(x, dtype, amax_of(x), source)
    assert written.weight.dtype == dtype
    return written.weight, codec.read(written.weight, written.stored)


def values(exponent):
    """All float32 of one binade, 2**23; at -127 the subnormals."""
    first = (exponent + 127) << 23
    pattern = torch.arange(first, first + (1 << 23), dtype=torch.int32)
    return pattern.view(FP32)[None]


def test_split_halves_join_for_every_upper_half():
    """All 2**16 upper halves with the lower ones where something changes; NaN stays NaN in both.

    0x7FFFFFFF, which is NaN, was rounded up to -0: a diverged run went on with zeros.
    """
    high = torch.arange(2**16, dtype=torch.int32)[:, None] << 16
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0xFFFF], dtype=torch.int32)
    x = (high | low).view(FP32)
    shown, back = through(Split(), x)
    same = back.view(torch.int32) == x.view(torch.int32)
    is_nan = x.isnan()
    assert is_nan.any()
    assert same[~is_nan].all()
    assert torch.equal(shown.isnan(), is_nan)
    assert torch.equal(back.isnan(), is_nan)


def test_split_shows_the_nearest_bf16():
    """At a tie the one of larger magnitude, where torch takes the even one; above max it is Inf."""
    x = values(0)
    shown, _ = through(Split(), x)
    nearest = x.bfloat16()
    differs = shown != nearest
    assert differs.sum() == 64  # the ties, half of which torch rounds down
    assert ((x.view(torch.int32)[differs] & 0xFFFF) == 0x8000).all()


@pytest.mark.parametrize("exponent", [-126, -20, 0, 100, 126])
def test_correction_is_within_its_step_and_never_worse_than_bf16(exponent):
    x = values(exponent)[:, ::7]  # 1.2 million of 8.4
    shown, back = through(Corrected(), x)
    assert torch.equal(shown, x.bfloat16())
    spacing = 2.0 ** (exponent - 7)
    error, alone = (back.double() - x.double()).abs(), (shown.double() - x.double()).abs()
    assert (error / spacing).max() <= 0.00394
    # In the binade of subnormals float32 itself has steps of 2**-149.
    assert (error <= alone + 2.0**-149).all()
    assert (error[alone == 0] == 0).all()
    assert (alone / spacing).max() > 0.49  # so the bound would fail without the correction


@pytest.mark.parametrize("exponent", [-127, -126, 0, 126])
def test_corrections_written_again_are_the_same_in_every_bit(exponent):
    """At both ends of a step and of a binade too, where BF16 alone has a tie."""
    x = values(exponent)
    x = torch.cat([x[:, ::97], x[:, :70000], -x[:, -70000:]], dim=1)
    first = Corrected().write(x, BF16, None, NO_BITS)
    read = Corrected().read(first.weight, first.stored)
    again = Corrected().write(read, BF16, None, NO_BITS)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.stored[0], again.stored[0])
    assert (first.stored[0].abs() >= 126).any()
    if exponent > -127:  # of subnormals float32 knows less
        assert ((read - x).abs() / x.abs()).max() <= 3.1e-5
        assert ((x.bfloat16() - x).abs() / x.abs()).max() > 3e-3


def test_corrections_take_steps_that_bf16_loses():
    """2**-12 of the weight, 200 times: 5 %. In BF16 alone nothing moves."""
    x, alone = torch.ones(1, 64), torch.ones(1, 64, dtype=BF16)
    written = Corrected().write(x, BF16, None, NO_BITS)
    for _ in range(200):
        read = Corrected().read(written.weight, written.stored) - 2.0**-12
        written = Corrected().write(read, BF16, None, NO_BITS)
        alone = (alone.float() - 2.0**-12).bfloat16()
    assert written.weight.float()[0, 0].item() == pytest.approx(1 - 200 * 2.0**-12, abs=2.0**-8)
    assert (alone == 1).all()


def test_chance_rounds_to_the_mean():
    """100,000 draws: the standard error of the mean is 2**-7 sqrt(p (1 - p) / n) = 1.2e-5."""
    x = torch.full((1, 100_000), 1.0 + 2.0**-9 + 2.0**-12)
    shown, _ = through(Stochastic(), x, source=bits())
    assert set(shown.unique().tolist()) == {1.0, 1.0 + 2.0**-7}
    assert shown.float().mean().item() == pytest.approx(x[0, 0].item(), abs=4 * 1.2e-5)


def test_chance_takes_steps_that_rounding_to_nearest_loses():
    """200 steps of -1e-4 from 1: .98 within sqrt(200 * 1e-4 * 2**-8) = .0088 for one weight."""
    x, nearest = torch.ones(1, 4096), torch.ones(1, 4096)
    for step in range(200):
        x = through(Stochastic(), x - 1e-4, source=bits(step))[1]
        nearest = (nearest - 1e-4).bfloat16().float()
    assert x.mean().item() == pytest.approx(0.98, abs=4 * 0.0088 / 4096**0.5)
    assert 0.5 * 0.0088 < x.std().item() < 1.5 * 0.0088
    assert (nearest == 1).all()


def test_chance_keeps_what_is_not_finite():
    """A NaN with all payload bits set would become zero if bits were added to it."""
    patterns = torch.tensor([0x7F800000, -0x800000, 0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32)
    x = patterns.view(FP32).repeat(1, 100)
    shown, _ = through(Stochastic(), x, source=bits())
    assert torch.equal(shown.float().nan_to_num(7.0), x.nan_to_num(7.0))


def test_chance_depends_on_the_place_in_the_whole_parameter():
    x = torch.randn(8, 50)
    whole, _ = through(Stochastic(), x, source=bits())
    lower, _ = through(Stochastic(), x[3:], source=bits(start=150))
    assert torch.equal(whole[3:], lower)
    wrong, _ = through(Stochastic(), x[3:], source=bits(start=0))
    assert not torch.equal(whole[3:], wrong)


def test_each_parameter_and_step_has_other_bits():
    """Two equal parameters with equal gradients, two equal steps."""
    one = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    named = [(name, torch.nn.Parameter(one.to(BF16))) for name in "ab"]
    optimizer = adamw(named, "bf16-stochastic", betas=(0.0, 0.0))
    seen = []
    for _ in range(2):
        for _, parameter in named:
            parameter.data.copy_(one)
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        seen += [parameter.detach().clone() for _, parameter in named]
    for first in range(4):
        for second in range(first):
            assert not torch.equal(seen[first], seen[second])


def test_bits_of_a_resumed_run_go_on():
    """Seed and step are in the state_dict; another seed there is taken over."""
    named = parameters(BF16)
    optimizer = adamw(named, "bf16-stochastic", seed=11)
    run(optimizer, named, range(2))
    again = [(name, torch.nn.Parameter(p.detach().clone())) for name, p in named]
    resumed = adamw(again, "bf16-stochastic", seed=0)
    resumed.load_state_dict(optimizer.state_dict())
    run(optimizer, named, range(2, 4))
    run(resumed, again, range(2, 4))
    assert_same_bits(snapshot(optimizer, named), snapshot(resumed, again))


@pytest.mark.parametrize("dtype", [FP32, BF16, torch.float16])
def test_a_master_holds_more_than_its_parameter(dtype):
    x = torch.randn(16, 100, generator=torch.Generator().manual_seed(0))
    codec = Master(codec=TensorScaled(format=FP16))
    shown, back = through(codec, x, dtype)
    assert torch.equal(shown, back.to(dtype))
    error = ((back - x).norm() / x.norm()).item()
    assert 1.9e-4 < error < 2.9e-4  # FP16, whatever the parameter is


def test_a_parameter_that_others_changed_counts_and_not_its_master():
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    codec = Master(codec=TensorScaled(format=FP16))
    written = codec.write(x, BF16, amax_of(x), NO_BITS)
    written.weight[2] = 0.5
    back = codec.read(written.weight, written.stored)
    assert (back[2] == 0.5).all()
    assert not torch.equal(back[:2], written.weight[:2].float())  # the master's, finer


def test_a_float32_parameter_is_read_and_written_in_place():
    x = torch.randn(4, 100)
    assert Own().read(x, ()) is x
    assert Own().write(x, FP32, None, NO_BITS).weight is x
