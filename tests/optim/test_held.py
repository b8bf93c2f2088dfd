"""What a parameter's state takes, before there is one."""

import pytest
import torch

from optim.state_cases import BF16, FP32, PAIRS, parameters, relative_error, run
from unitscale import optim
from unitscale.optim.held import MOMENTS, field_bytes, held, state_nbytes
from unitscale.optim.states import STATES

LARGE = (1000, 1024)


def bytes_of(states, dtype, optimizer="adamw"):
    return state_nbytes(states, LARGE, dtype, optimizer) / (LARGE[0] * LARGE[1])


def test_bytes_of_a_parameter_are_those_of_the_papers():
    """FP8-LM: master 2, first moment 1, second 2, and a gradient of 1 that is no state: 6.

    COAT's kernel keeps three numbers of float32 for a block of 128, which is 2.19; here are two.
    """
    assert bytes_of("fp32", FP32) == pytest.approx(8, rel=1e-5)
    assert bytes_of("fp8-lm", FP32) == pytest.approx(5, rel=1e-5)
    assert bytes_of("coat", FP32) == pytest.approx(2 * (1 + 8 / 128), rel=1e-5)
    assert bytes_of("bf16-stochastic", BF16) == pytest.approx(8, rel=1e-5)
    assert bytes_of("master24", BF16) == pytest.approx(1 + 2 * (1 + 4 / 64), rel=1e-5)


def test_fp8_lms_moments_take_62_percent_less():
    names = MOMENTS["adamw"]
    taken = [
        sum(field_bytes(codec, LARGE) for _, codec in held(states, LARGE, FP32, names).moments)
        for states in ("fp8-lm", "fp32")
    ]
    assert 1 - taken[0] / taken[1] == pytest.approx(0.625, abs=1e-5)


def test_momentum_alone_takes_one_moment():
    assert bytes_of("coat", FP32, "sgd") == pytest.approx(1.0625, rel=1e-5)
    assert bytes_of("fp8-lm", FP32, "sgd") == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(("states", "dtype"), PAIRS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (7, 1), (7, 3), (2, 129), (4, 3, 3, 3)])
def test_no_state_takes_more_than_float32_would(states, dtype, shape):
    """And a narrow parameter what makes it float32, besides; FP8-LM's has a whole master."""
    count = torch.Size(shape).numel()
    beside = 4 if states == "fp8-lm" else {FP32: 0, BF16: 2, torch.float16: 4}[dtype]
    assert state_nbytes(states, shape, dtype) <= 4 + count * (8 + beside)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="states is 'fp9'; expected None or one of 'fp32'"):
        state_nbytes("fp9", (3,), FP32)
    with pytest.raises(ValueError, match="optimizer is 'lion'; expected one of adam, adamw, sgd"):
        state_nbytes("coat", (3,), FP32, "lion")
    with pytest.raises(ValueError, match=r"state_nbytes: states='master24' cannot hold .*float32"):
        state_nbytes("master24", (3,), FP32)


@pytest.mark.parametrize("states", [name for name in STATES if name != "bf16-stochastic"])
@pytest.mark.parametrize(("kind", "options"), [("Adam", {}), ("SGD", {"momentum": 0.9})])
def test_adam_and_momentum_are_held_as_well(states, kind, options):
    """As close to float32 as the codec of the first moment."""
    dtype = BF16 if states == "master24" else FP32
    coded, plain = parameters(dtype), parameters(dtype)
    one = getattr(optim, kind)(coded, 0.01, rules=None, states=states, **options)
    other = getattr(optim, kind)(plain, 0.01, rules=None, states="fp32", **options)
    run(one, coded, range(4))
    run(other, plain, range(4))
    slot = MOMENTS[kind.lower()][0]
    for (name, parameter), (_, exact) in zip(coded, plain, strict=True):
        if parameter.numel() < 100:
            continue
        use = next(use for use in one.uses() if use.name == name)
        codec = dict(one.held_of(use).moments)[slot]
        rows = parameter.shape[0]
        stored = [
            value if field.layout == "tensor" else value.reshape(rows, -1)
            for field in codec.fields
            for value in [one.state[parameter][slot + field.suffix]]
        ]
        error = relative_error(codec.decode(stored).flatten(), other.state[exact][slot].flatten())
        # Three roundings behind it and one of its own.
        assert error < 2 * 0.04 if states != "fp32" else error == 0
        assert error > 1e-3 or states == "fp32"
        assert one.state[parameter][slot].dtype in (torch.uint8, torch.int8, FP32)
    sizes = [state_nbytes(states, p.shape, dtype, kind.lower()) for _, p in coded]
    assert one.state_bytes() == sum(sizes)
