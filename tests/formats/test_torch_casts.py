"""What torch's own casts to narrow formats do, so that a change in torch is noticed.

Seen in torch 2.13 on a CPU. The saturation of E4M3FN came with 2.13 (pull request 178817); before
it, the cast gave NaN there. `round_to` clamps first and depends on none of this.
"""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from formats.oracle import patterns

E4M3FN, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
E4M3FNUZ, E5M2FNUZ = torch.float8_e4m3fnuz, torch.float8_e5m2fnuz
E8M0FNU = torch.float8_e8m0fnu
NAN, INF = math.nan, math.inf

SATURATES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
E4M3FN_OVERFLOW = 0x7E if SATURATES else 0x7F  # 448 or NaN

# dtype, input, code
CASTS = [
    (E4M3FN, 464.0, 0x7E),
    (E4M3FN, 464.01, E4M3FN_OVERFLOW),
    (E4M3FN, 480.0, E4M3FN_OVERFLOW),
    (E4M3FN, 1e38, E4M3FN_OVERFLOW),
    (E4M3FN, INF, E4M3FN_OVERFLOW),
    (E4M3FN, -INF, E4M3FN_OVERFLOW | 0x80),
    (E4M3FN, NAN, 0x7F),
    (E5M2, 61439.0, 0x7B),
    (E5M2, 61440.0, 0x7C),
    (E5M2, INF, 0x7C),
    (E5M2, NAN, 0x7F),
    (E4M3FNUZ, 247.9, 0x7F),
    (E4M3FNUZ, 248.0, 0x80),
    (E4M3FNUZ, 256.0, 0x80),
    (E4M3FNUZ, INF, 0x80),
    (E5M2FNUZ, 61439.0, 0x7F),
    (E5M2FNUZ, 61440.0, 0x80),
    (E5M2FNUZ, INF, 0x80),
    (E4M3FNUZ, -0.0, 0x00),
    (E5M2FNUZ, -0.0, 0x00),
    (E4M3FNUZ, -(2.0**-20), 0x00),
    (E5M2FNUZ, -(2.0**-30), 0x00),
    (E4M3FN, -(2.0**-11), 0x80),
    (E4M3FN, 2.0**-10, 0x00),
    (E4M3FN, 1.5 * 2.0**-9, 0x02),
    (E5M2, -(2.0**-18), 0x80),
    (E5M2, 2.0**-17, 0x00),
    (E8M0FNU, 0.0, 0x00),
    (E8M0FNU, -1.0, 0x7F),
    (E8M0FNU, -2.0, 0x80),
    (E8M0FNU, 1.5, 0x80),
    (E8M0FNU, 3.0, 0x81),
    (E8M0FNU, 0.75, 0x7F),
    (E8M0FNU, 1.5 * 2.0**127, 0xFF),
    (E8M0FNU, INF, 0xFF),
    (E8M0FNU, NAN, 0xFF),
    (E8M0FNU, 2.0**-128, 0x00),
    (E8M0FNU, 2.0**-149, 0x00),
    (E8M0FNU, 1.25 * 2.0**-127, 0x01),  # nearer to 2**-127, which is code 0
]


@pytest.mark.parametrize("length", [1, 129], ids=["scalar", "vectorized"])
@pytest.mark.parametrize("source", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("dtype", "x", "code"), CASTS)
def test_cast(dtype, x, code, source, length):
    codes = torch.full((length,), x, dtype=source).to(dtype).view(torch.uint8)
    assert set(codes.tolist()) == {code}


@pytest.mark.parametrize(
    ("dtype", "differing"),
    [
        (E4M3FN, 30_512 if SATURATES else 0),  # all past the largest value
        (E5M2, 0),
        (E4M3FNUZ, 0),
        (E5M2FNUZ, 0),
        (E8M0FNU, 32_577),  # zero and negative values
    ],
)
def test_casts_of_every_bfloat16_against_ml_dtypes(dtype, differing):
    x = patterns(torch.bfloat16)
    name = str(dtype).removeprefix("torch.")
    with np.errstate(all="ignore"):
        other = x.float().numpy().astype(getattr(ml_dtypes, name)).view(np.uint8)
    ours = x.to(dtype).view(torch.uint8).numpy()
    is_number = ~x.isnan().numpy()
    assert (ours != other)[is_number].sum() == differing


@pytest.mark.parametrize("dtype", [E4M3FN, E5M2, E4M3FNUZ, E5M2FNUZ, E8M0FNU], ids=str)
def test_decoding_of_every_code_equals_ml_dtypes(dtype):
    codes = np.arange(256, dtype=np.uint8)
    name = str(dtype).removeprefix("torch.")
    expected = codes.view(getattr(ml_dtypes, name)).astype(np.float32)
    values = torch.from_numpy(codes).view(dtype).float().numpy()
    np.testing.assert_array_equal(values, expected)


def test_fp4_is_a_packed_shell_without_casts():
    packed = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(NotImplementedError):
        packed.float()
    with pytest.raises(NotImplementedError):
        torch.zeros(4).to(torch.float4_e2m1fn_x2)
    with pytest.raises(NotImplementedError):
        _ = torch.finfo(torch.float4_e2m1fn_x2).max


def test_there_is_no_fp6_dtype():
    assert not hasattr(torch, "float6_e3m2fn")
    assert not hasattr(torch, "float6_e2m3fn")


def test_float64_goes_through_float32():
    """Why `round_to` leaves float64 to its own formula: this should be 1.125."""
    just_above_a_tie = torch.tensor([1.0625 + 2.0**-40], dtype=torch.float64)
    assert just_above_a_tie.to(E4M3FN).double().item() == 1.0
    assert torch.tensor([1 + 2.0**-11 + 2.0**-40]).double().to(torch.float16).item() == 1.0


def test_finfo_of_e5m2fnuz_is_wrong():
    assert torch.finfo(E5M2FNUZ).eps == 0.125  # 0.25 in truth


def test_zeros_of_e8m0_are_not_zero():
    assert torch.zeros(2, dtype=E8M0FNU).float().tolist() == [2.0**-127] * 2


def test_full_raises_where_the_cast_saturates():
    with pytest.raises(RuntimeError):
        torch.full((2,), 1000.0, dtype=E4M3FN)


def test_the_cast_passes_gradients_even_of_saturated_values():
    x = torch.tensor([1.0, 1e6], requires_grad=True)
    x.to(E4M3FN).float().sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_casting_by_way_of_bfloat16_rounds_twice():
    x = torch.randn(100_000)
    share = (x.bfloat16().to(E4M3FN).float() != x.to(E4M3FN).float()).double().mean()
    assert 0.029 < share < 0.033  # 0.031, give or take 4 standard errors of 0.00055
