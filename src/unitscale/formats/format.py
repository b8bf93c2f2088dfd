"""What a floating-point number format is: a handful of fields, everything else derived from them.

Imports no torch, so formats can be listed, compared and reasoned about without it.
"""

import math
from dataclasses import dataclass, field
from enum import Enum


class Specials(Enum):
    """Which codes of a format are not finite numbers."""

    IEEE = "top exponent holds Inf (mantissa zero) and NaN (the rest)"
    ALL_ONES_NAN = "all exponent and mantissa bits set is NaN; no Inf"
    NEGATIVE_ZERO_NAN = "the code of -0 is NaN; no Inf, no -0"
    NONE = "every code is a finite number"


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A binary floating-point format; its codes are sign, exponent, mantissa from the top bit down.

    A normal code with exponent field `E` and mantissa field `M` is worth
    `(1 + M / 2**mantissa_bits) * 2**(E - bias)`; with `E = 0` it is zero or a subnormal,
    `M / 2**mantissa_bits * 2**(1 - bias)`, unless `has_zero` is false: then `E = 0` is one more
    normal exponent and the format has neither zero nor subnormals (E8M0FNU).

    NaN, Inf and -0 are what `specials` says: IEEE formats have all three, ALL_ONES_NAN has NaN and
    -0, NEGATIVE_ZERO_NAN has NaN only, NONE has -0 only. An unsigned format has no -0.
    Every finite value is exact in a Python float. With one exponent bit the values are evenly
    spaced: INT8 is whole numbers from -127 to 127, each as sign and magnitude.

    Args:
        name: ml_dtypes' grammar for 8 bits and below: F finite (no Inf), N NaN is one code,
            U unsigned, UZ no negative zero, B<n> bias n. ml_dtypes' 6- and 4-bit types are called
            FN though they have no NaN.
        source: the document that defines the format; takes no part in comparison.
    Raises:
        ValueError: a field is out of range, or some value would not fit a Python float.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials = Specials.IEEE
    is_signed: bool = True
    has_zero: bool = True
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        # One exponent bit gives whole multiples of one step: subnormals, then a binade as fine. It
        # is all there is to such a format, so none of its exponents can be set aside for Inf.
        least = 1 if self.specials in (Specials.NEGATIVE_ZERO_NAN, Specials.NONE) else 2
        if not least <= self.exponent_bits <= 11:
            raise ValueError(
                f"{self.name}: exponent_bits is {self.exponent_bits}; expected {least} to 11"
            )
        if not 0 <= self.mantissa_bits <= 52:
            raise ValueError(
                f"{self.name}: mantissa_bits is {self.mantissa_bits}; expected 0 to 52"
            )
        if self.specials is Specials.IEEE and self.mantissa_bits == 0:
            raise ValueError(f"{self.name}: mantissa_bits is 0; Inf and NaN need a mantissa bit")
        if self.is_signed and not self.has_zero:
            raise ValueError(f"{self.name}: a format without zero must be unsigned")
        if self.specials is Specials.NEGATIVE_ZERO_NAN and not self.is_signed:
            raise ValueError(f"{self.name}: unsigned, so it has no code of -0 to be NaN")
        top = (self._max_code >> self.mantissa_bits) - self.bias
        if self.min_exponent < -1022 or top > 1023:
            raise ValueError(
                f"{self.name}: bias {self.bias} gives exponents {self.min_exponent} to {top}; "
                "expected -1022 to 1023, those of a Python float"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> int:
        """Width of a code: sign, exponent and mantissa."""
        return self.is_signed + self.exponent_bits + self.mantissa_bits

    @property
    def is_uniform(self) -> bool:
        """Whether all values are whole multiples of one step, as integers are."""
        return self.exponent_bits == 1

    @property
    def has_inf(self) -> bool:
        """Whether some code is Inf."""
        return self.specials is Specials.IEEE

    @property
    def has_nan(self) -> bool:
        """Whether some code is NaN."""
        return self.specials is not Specials.NONE

    @property
    def has_negative_zero(self) -> bool:
        """Whether zero has a sign."""
        return self.is_signed and self.specials is not Specials.NEGATIVE_ZERO_NAN

    @property
    def nan_code(self) -> int | None:
        """The NaN with sign bit 0 and all other bits 1; of -0's code where that is NaN; or None."""
        if self.specials is Specials.NEGATIVE_ZERO_NAN:
            return self._sign_bit
        return self._sign_bit - 1 if self.has_nan else None

    @property
    def min_exponent(self) -> int:
        """Exponent of `min_normal`."""
        return int(self.has_zero) - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of `max`: `2**max_exponent <= max < 2**(max_exponent + 1)`."""
        return (self._max_code >> self.mantissa_bits) - self.bias

    @property
    def max(self) -> float:
        """The largest finite value."""
        return self._magnitude(self._max_code)

    @property
    def min_normal(self) -> float:
        """The smallest positive value with full precision."""
        return math.ldexp(1.0, self.min_exponent)

    @property
    def min_subnormal(self) -> float:
        """The smallest positive value; equal to `min_normal` where there are no subnormals."""
        return math.ldexp(1.0, self.min_exponent - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """Spacing of the values in [1, 2)."""
        return math.ldexp(1.0, -self.mantissa_bits)

    def decode(self, code: int) -> float:
        """The value of one code, exactly; NaN loses its sign and payload.

        Raises:
            ValueError: code is not in [0, 2**bits).
        """
        if not 0 <= code < 1 << self.bits:
            raise ValueError(f"{self.name}: code is {code}; expected 0 to {(1 << self.bits) - 1}")
        magnitude = code & (self._sign_bit - 1)
        sign = -1.0 if code & self._sign_bit else 1.0
        if magnitude > self._max_code or (
            sign < 0 and magnitude == 0 and not self.has_negative_zero
        ):
            is_inf = self.has_inf and magnitude == self._max_code + 1
            return sign * math.inf if is_inf else math.nan
        return sign * self._magnitude(magnitude)

    def values(self) -> list[float]:
        """The value of every code, in code order: the position is the code.

        Raises:
            ValueError: the format has more than 16 bits.
        """
        if self.bits > 16:
            raise ValueError(f"{self.name} has 2**{self.bits} codes; values() lists 2**16 at most")
        return [self.decode(code) for code in range(1 << self.bits)]

    def fits_in(self, other: "FloatFormat") -> bool:
        """Whether every finite value of this format is also a value of `other`."""
        return (
            self.mantissa_bits <= other.mantissa_bits
            and self.max <= other.max
            and self.min_subnormal >= other.min_subnormal
            and (other.has_zero or not self.has_zero)
            and (other.is_signed or not self.is_signed)
        )

    def max_within(self, other: "FloatFormat") -> float:
        """The largest value that this format and `other` share.

        It is `max` where that fits; the largest of FP16 within BF16 is 65280, since 65504 has too
        many bits.
        """
        smaller = min(self.max, other.max)
        shift = min(self.mantissa_bits, other.mantissa_bits) + 1
        mantissa, exponent = math.frexp(smaller)
        found = math.ldexp(math.floor(math.ldexp(mantissa, shift)), exponent - shift)
        step = max(self.min_subnormal, other.min_subnormal)  # both hold multiples of theirs alone
        return found - math.fmod(found, step)

    def _magnitude(self, code: int) -> float:
        exponent, mantissa = divmod(code, 1 << self.mantissa_bits)
        if exponent == 0 and self.has_zero:
            return mantissa * self.min_subnormal
        return math.ldexp(1.0 + mantissa * self.epsilon, exponent - self.bias)

    @property
    def _sign_bit(self) -> int:
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @property
    def _max_code(self) -> int:
        if self.specials is Specials.IEEE:
            return self._sign_bit - (1 << self.mantissa_bits) - 1
        return self._sign_bit - 1 - (self.specials is Specials.ALL_ONES_NAN)
