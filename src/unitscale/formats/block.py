"""Block formats: short runs of elements in a narrow format that share a scale. Imports no torch."""

from dataclasses import dataclass, field

from unitscale.formats.catalogue import (
    E2M1FN,
    E2M3FN,
    E3M2FN,
    E4M3FN,
    E5M2,
    E8M0FNU,
)
from unitscale.formats.format import FloatFormat


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """`size` elements of format `element` share a scale of format `scale`.

    An element is worth `element * scale`, or with a tensor scale `element * (scale * tensor_scale)`
    in float32.

    Args:
        element: a signed format with zero, of 8 bits or fewer.
        size: a power of two.
        scale: E8M0FNU (then the scale follows from the block's exponent, as in OCP MX), or E4M3FN
            (then it follows from `amax / element.max`, as in NVFP4).
        has_tensor_scale: whether one float32 scales the whole tensor.
        source: the document that defines the format; takes no part in comparison.
    Raises:
        ValueError: a field is none of these.
    """

    name: str
    element: FloatFormat
    size: int
    scale: FloatFormat
    has_tensor_scale: bool = False
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        element = self.element
        if element.bits > 8 or not (element.is_signed and element.has_zero):
            raise ValueError(
                f"{self.name}: element is {element}; expected a signed format with zero, 8 bits "
                "or fewer"
            )
        if self.size < 2 or self.size & (self.size - 1):
            raise ValueError(f"{self.name}: size is {self.size}; expected a power of two")
        if self.scale not in (E8M0FNU, E4M3FN):
            raise ValueError(f"{self.name}: scale is {self.scale}; expected E8M0FNU or E4M3FN")
        if self.has_tensor_scale != (self.scale == E4M3FN):
            raise ValueError(
                f"{self.name}: has_tensor_scale is {self.has_tensor_scale}; a scale in E4M3FN "
                "reaches over 18 binades only and needs one, a scale in E8M0FNU does not"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def bits_per_value(self) -> float:
        """Bits of an element and its share of the block's scale."""
        return self.element.bits + self.scale.bits / self.size


def _mx(element: FloatFormat) -> BlockFormat:
    return BlockFormat(
        name=f"MX_{element}",
        element=element,
        size=32,
        scale=E8M0FNU,
        source="OCP Microscaling Formats v1.0",
    )


MX_E5M2 = _mx(E5M2)
MX_E4M3FN = _mx(E4M3FN)
MX_E3M2FN = _mx(E3M2FN)
MX_E2M3FN = _mx(E2M3FN)
MX_E2M1FN = _mx(E2M1FN)
NVFP4 = BlockFormat(
    name="NVFP4",
    element=E2M1FN,
    size=16,
    scale=E4M3FN,
    has_tensor_scale=True,
    source="NVIDIA, Pretraining Large Language Models with NVFP4, arXiv 2509.25149",
)

BLOCK_FORMATS: dict[str, BlockFormat] = {
    "MX_E5M2": MX_E5M2,
    "MX_E4M3FN": MX_E4M3FN,
    "MX_E3M2FN": MX_E3M2FN,
    "MX_E2M3FN": MX_E2M3FN,
    "MX_E2M1FN": MX_E2M1FN,
    "NVFP4": NVFP4,
}
