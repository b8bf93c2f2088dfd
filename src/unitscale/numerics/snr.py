"""Signal to noise of Gaussian data in a number format, measured and in closed form.

A format has a plateau, where the noise of rounding grows with the data, and a knee at either end:
below, the noise is that of the subnormals' fixed spacing; above, values saturate.
"""

import math
from collections.abc import Sequence

import torch

from unitscale.formats import FloatFormat, round_to

COUNT = 1 << 16

REACH = math.e * math.pi
"""Sigmas that are looked at; no multiple of a power of two, so that no spacing is met in step."""


def measure_snr(fmt: FloatFormat, log2_sigmas: Sequence[float], count: int = COUNT) -> list[float]:
    """`E x**2 / E (round(x) - x)**2` for x ~ N(0, sigma), in dB, at each scale.

    Rounds `count` evenly spaced magnitudes up to 8.5 sigma and weighs them with the Gaussian:
    random draws would miss the tail that decides where a format of high precision saturates.
    """
    x = (torch.arange(count, dtype=torch.float64) + 0.5) * (REACH / count)
    weight = (-x.square() / 2).exp()
    found = []
    for k in log2_sigmas:
        scaled = x * 2.0**k
        noise = (weight * (round_to(scaled, fmt) - scaled).square()).sum()
        found.append(10 * math.log10((weight * scaled.square()).sum() / noise))
    return found


def expected_snr(fmt: FloatFormat, log2_sigma: float) -> float:
    """The same in dB from the format's range and precision alone.

    A value in [2**e, 2**(e + 1)) has rounding noise `(epsilon * 2**e)**2 / 12`; one below the
    smallest normal has `min_subnormal**2 / 12`, but none has more than it is worth itself; one
    above the largest value has the square of what is cut off. Weighed with the Gaussian. Good to
    0.1 dB where more than a few subnormals are in use.
    """
    sigma = 2.0**log2_sigma
    noise = min(fmt.min_subnormal**2 / 12, sigma**2) * share(0, fmt.min_normal / sigma)
    for e in range(fmt.min_exponent, fmt.max_exponent + 1):
        upper = min(2.0 ** (e + 1), fmt.max)
        noise += (fmt.epsilon * 2.0**e) ** 2 / 12 * share(2.0**e / sigma, upper / sigma)
    cut = fmt.max / sigma
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi) if cut < 40 else 0.0
    tail = math.erfc(cut / math.sqrt(2))
    noise += sigma**2 * ((1 + cut**2) * tail - 2 * cut * density)
    return 10 * math.log10(sigma**2 / noise)


def share(low: float, high: float) -> float:
    """P(low <= |x| < high) of a standard Gaussian."""
    return math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))


def plateau_db(fmt: FloatFormat) -> float:
    """The SNR in the middle of the range: averaged over an octave, over which it ripples."""
    middle = (fmt.min_exponent + fmt.max_exponent) // 2
    ratios = [10 ** (expected_snr(fmt, middle + i / 8) / 10) for i in range(8)]
    return 10 * math.log10(sum(ratios) / len(ratios))


def knees(fmt: FloatFormat) -> tuple[float, float]:
    """log2 of the scales between which the SNR is above half the plateau's, by bisection."""
    half = plateau_db(fmt) - 10 * math.log10(2)
    middle = (fmt.min_exponent + fmt.max_exponent) / 2

    def edge(outside: float) -> float:
        inside = middle
        for _ in range(40):
            center = (inside + outside) / 2
            if expected_snr(fmt, center) > half:
                inside = center
            else:
                outside = center
        return inside

    return edge(fmt.min_exponent - fmt.mantissa_bits), edge(fmt.max_exponent + 1.0)
