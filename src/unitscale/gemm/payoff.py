"""Whether FP8 can pay for a linear layer of given sizes: the arithmetic, and what others measured.

A layer of m rows, k features in and n out has three products of 2 m k n operations each. FP8 halves
their time, and adds passes over the operands x [m, k], weight [n, k] and gradient [m, n]:

    FP8 pays if   BF16 products - FP8 products   >   amax passes + casts + copies that fill up

Products grow with m k n, passes with m k + n k + m n: small layers, and layers that are small in
one direction, gain less than their passes cost. Each product takes the longer of its arithmetic and
its memory traffic, and starts a kernel, as each pass does; nothing overlaps; passes reach the full
bandwidth. So this is a bound from above: measured speedups are lower (docs/speed.md has both for
the shapes that others published).
"""

from dataclasses import dataclass

from unitscale.gemm.accelerator import Accelerator

__all__ = ["WAYS", "Judged", "Shape", "Way", "judge", "parse_shape", "torchao_converts"]

REACHED = 0.70
"""Share of the peak that products reach, in BF16 and in FP8."""
LAUNCH = 3e-6
"""Seconds that one more kernel costs."""
MULTIPLE = 16
"""Hardware wants the contraction and the columns of a result in multiples of this."""
PAYS, MAY_PAY = 1.3, 1.1
"""Speedups on paper from which FP8 is said to pay, and to be worth a measurement.

Torchao's thresholds, from measurements on an H100, are met best by 1.3: tests/gemm/test_payoff.py.
"""
MOST = 2**40


@dataclass(frozen=True)
class Shape:
    """The sizes of a linear layer: m rows, k features in, n features out."""

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"

    @property
    def operations(self) -> int:
        """Of one of its three products."""
        return 2 * self.m * self.k * self.n

    @property
    def elements(self) -> int:
        """Of x, weight and the gradient of the output."""
        return self.m * self.k + self.k * self.n + self.m * self.n

    @property
    def intensity(self) -> float:
        """Operations for each byte that a BF16 product moves."""
        return self.operations / (2 * self.elements)


def parse_shape(text: str) -> Shape:
    """The shape that MxKxN says.

    Raises:
        ValueError: it is not three whole numbers of 1 or more.
    """
    parts = text.strip().lower().split("x")
    sizes = [int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 14]
    if len(parts) != 3 or len(sizes) != 3:
        raise ValueError(
            f"--shapes has {text.strip()!r}; expected MxKxN, as 4096x4096x8192: rows, features in, "
            "features out"
        )
    for size in sizes:
        if not 1 <= size <= MOST:
            raise ValueError(f"--shapes has {text.strip()!r}; expected sizes from 1 to 2^40")
    return Shape(*sizes)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to make FP8 operands: what each of the three costs.

    Args:
        name: as printed.
        recipes: of the catalogue, that do so.
        amax_bytes, cast_bytes: memory traffic for one element of an operand that is in BF16.
        launches: kernels for one operand.
    """

    name: str
    recipes: str
    amax_bytes: int
    cast_bytes: int
    launches: int


WAYS = (
    # Read in BF16, written in rows and in columns: 2 + 1 + 1.
    Way(
        name="units",
        recipes="fp8, fp8-delayed, fp8-cscale",
        amax_bytes=0,
        cast_bytes=4,
        launches=1,
    ),
    # The whole tensor is read once more, before any cast.
    Way(
        name="tensorwise",
        recipes="fp8-current, fp8-amax",
        amax_bytes=2,
        cast_bytes=4,
        launches=2,
    ),
    # An amax along each of the two axes, and a cast by each: (2 + 2 + 1) twice.
    Way(name="rowwise", recipes="fp8-rowwise", amax_bytes=4, cast_bytes=6, launches=4),
    # A block fits on chip, so that its amax costs no pass: (2 + 1) twice.
    Way(name="blocks", recipes="fp8-block, mxfp8", amax_bytes=0, cast_bytes=6, launches=2),
)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the arithmetic says of one shape, in seconds, for the three products together.

    Args:
        bf16: the products in BF16.
        fp8: the products in FP8; None where the device has none.
        passes: by way, amax and casts with their launches.
        filling: copies that fill sizes up to multiples of 16, and cut results.
        converted: by torchao's filter, "tensorwise" and "rowwise".
        verdict: "yes", "perhaps" or "no".
        why: in words, with the numbers that it rests on.
    """

    shape: Shape
    bf16: float
    fp8: float | None
    passes: dict[str, float]
    filling: float
    converted: dict[str, bool]
    verdict: str
    why: str

    def seconds(self, way: str) -> float | None:
        """All that FP8 takes in this way; None without FP8 products."""
        return None if self.fp8 is None else self.fp8 + self.passes[way] + self.filling

    def speedup(self, way: str) -> float | None:
        """Over BF16."""
        taken = self.seconds(way)
        return None if taken is None else self.bf16 / taken


def judge(shape: Shape, device: Accelerator) -> Judged:
    """Whether FP8 can pay for the three products of this shape on this device."""
    bf16 = products_seconds(shape, device.bf16, 2, device)
    fp8 = None if device.fp8 is None else products_seconds(shape, device.fp8, 1, device)
    passes = {way.name: passes_seconds(shape, way, device) for way in WAYS}
    filling = filling_seconds(shape, device)
    converted = {name: torchao_converts(shape, name) for name in ("tensorwise", "rowwise")}
    verdict, why = words(shape, device, bf16, fp8, passes, filling)
    return Judged(
        shape=shape,
        bf16=bf16,
        fp8=fp8,
        passes=passes,
        filling=filling,
        converted=converted,
        verdict=verdict,
        why=why,
    )


def products_seconds(shape: Shape, peak: float, width: int, device: Accelerator) -> float:
    """The three products with operands of `width` bytes and results in BF16, a launch each."""
    x, w, g = shape.m * shape.k, shape.k * shape.n, shape.m * shape.n
    arithmetic = shape.operations / (REACHED * peak)
    traffic = (
        (width * (x + w) + 2 * g) / device.bandwidth,
        (width * (g + w) + 2 * x) / device.bandwidth,
        (width * (g + x) + 2 * w) / device.bandwidth,
    )
    return sum(max(arithmetic, moved) + LAUNCH for moved in traffic)


def passes_seconds(shape: Shape, way: Way, device: Accelerator) -> float:
    """Amaxes and casts of the three operands."""
    moved = shape.elements * (way.amax_bytes + way.cast_bytes)
    return moved / device.bandwidth + 3 * way.launches * LAUNCH


def filling_seconds(shape: Shape, device: Accelerator) -> float:
    """Copies of operands with zeros (2 bytes an element) and of results cut to size (4 bytes).

    A product [r, d] @ [d, c] wants d and c in multiples of 16.
    """
    moved = launches = 0
    for rows, depth, columns in (
        (shape.m, shape.k, shape.n),
        (shape.m, shape.n, shape.k),
        (shape.n, shape.m, shape.k),
    ):
        copies = (
            2 * rows * depth * bool(depth % MULTIPLE),
            2 * columns * depth * bool(depth % MULTIPLE or columns % MULTIPLE),
            4 * rows * columns * bool(columns % MULTIPLE),
        )
        moved += sum(copies)
        launches += sum(map(bool, copies))
    return moved / device.bandwidth + launches * LAUNCH


def torchao_converts(shape: Shape, recipe: str) -> bool:
    """Whether torchao's automatic filter would convert a linear layer with this weight.

    Source: torchao 0.18, float8/float8_linear_utils.py (`_auto_filter_for_recipe`), whose
    thresholds come from measurements on an H100. Earlier versions took k and n the other way round.
    """
    if shape.k % MULTIPLE or shape.n % MULTIPLE:
        return False
    if recipe == "tensorwise":
        return not (shape.k <= 4096 and shape.n <= 1024)
    return shape.n > 2048 and shape.k > 1024 and not (shape.n <= 4096 and shape.k <= 2048)


def words(
    shape: Shape,
    device: Accelerator,
    bf16: float,
    fp8: float | None,
    passes: dict[str, float],
    filling: float,
) -> tuple[str, str]:
    """The verdict, and the numbers that it rests on."""
    if fp8 is None:
        return "no", f"the {device.title} has no FP8 products; FP8 there is emulated"
    saved = bf16 - fp8
    cheapest, tensorwise = passes["units"] + filling, passes["tensorwise"] + filling
    best, usual = bf16 / (fp8 + cheapest), bf16 / (fp8 + tensorwise)
    cost = f"the products save {us(saved)} at most, and casts cost {us(cheapest)}"
    cost += f" (with amax passes {us(tensorwise)})"
    if filling:
        cost += f", of which {us(filling)} fill sizes up to multiples of {MULTIPLE}"
    even = bf16 / (fp8 + passes["units"])
    reason = small(shape, device)
    if filling and even >= PAYS:
        reason = f"{even:.2f} if every size were a multiple of {MULTIPLE}"
    if best < MAY_PAY:
        return "no", f"{cost}; {reason}"
    if best < PAYS:
        return "perhaps", f"{cost}: {best:.2f} times as fast at best; {reason}"
    if usual < PAYS:
        return "yes", (
            f"{cost}: {best:.2f} times as fast with scales known before the tensor, "
            f"{usual:.2f} with one of now"
        )
    return "yes", f"{cost}: {best:.2f} times as fast at best, {usual:.2f} with a scale of now"


def small(shape: Shape, device: Accelerator) -> str:
    """Why a shape gains so little."""
    if shape.intensity < device.ridge:
        return (
            f"a BF16 product does {shape.intensity:.0f} operations a byte where the {device.title} "
            f"needs {device.ridge:.0f} to be bound by arithmetic, which is all that FP8 halves"
        )
    if bf16_seconds_saved(shape, device) < 6 * LAUNCH:
        return f"the products are so short that the starts of kernels weigh, {us(LAUNCH)} each"
    sizes = {"rows": shape.m, "features in": shape.k, "features out": shape.n}
    name = min(sizes, key=lambda key: sizes[key])
    return f"too few {name}: {sizes[name]}"


def bf16_seconds_saved(shape: Shape, device: Accelerator) -> float:
    """What half of the arithmetic of the three products takes."""
    return 3 * shape.operations / (2 * REACHED * device.bf16)


def us(seconds: float) -> str:
    """In microseconds; two digits of what is less than one."""
    if seconds >= 1e-5:
        return f"{seconds * 1e6:,.0f} us"
    return f"{seconds * 1e6:.1f} us" if seconds >= 1e-6 else f"{seconds * 1e6:.2g} us"
