"""What accelerators can do by their data sheets: the numbers behind "can FP8 pay?".

Dense peaks, without structured sparsity, with FP32 accumulation.
"""

from dataclasses import dataclass
from difflib import get_close_matches

__all__ = ["ACCELERATORS", "Accelerator", "find_accelerator", "recognized"]


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device, as its vendor describes it.

    Args:
        key: as `--device-name` takes it.
        title: as people call it.
        bf16, fp8: operations a second of dense products; fp8 is None without FP8 products.
        bandwidth: bytes a second of its memory.
        marks: what of its driver's name says that it is this one.
        source: where the numbers are from.
    """

    key: str
    title: str
    bf16: float
    fp8: float | None
    bandwidth: float
    marks: tuple[str, ...]
    source: str

    @property
    def ridge(self) -> float:
        """Operations for each byte moved, above which BF16 products are bound by arithmetic."""
        return self.bf16 / self.bandwidth


ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(
        key="h100",
        title="H100 SXM",
        bf16=989e12,
        fp8=1979e12,
        bandwidth=3.35e12,
        marks=("H100 80GB HBM3", "H100 SXM"),
        source="NVIDIA H100 data sheet",
    ),
    Accelerator(
        key="h100-pcie",
        title="H100 PCIe",
        bf16=756e12,
        fp8=1513e12,
        bandwidth=2.0e12,
        marks=("H100 PCIe",),
        source="NVIDIA H100 data sheet",
    ),
    Accelerator(
        key="h200",
        title="H200 SXM",
        bf16=989e12,
        fp8=1979e12,
        bandwidth=4.8e12,
        marks=("H200",),
        source="NVIDIA H200 data sheet",
    ),
    Accelerator(
        key="b200",
        title="B200 (HGX)",
        bf16=2250e12,
        fp8=4500e12,
        bandwidth=8.0e12,
        marks=("B200",),
        source="NVIDIA HGX B200, Blackwell architecture brief",
    ),
    Accelerator(
        key="l40s",
        title="L40S",
        bf16=362e12,
        fp8=733e12,
        bandwidth=0.864e12,
        marks=("L40S",),
        source="NVIDIA L40S data sheet",
    ),
    Accelerator(
        key="rtx4090",
        title="GeForce RTX 4090",
        bf16=165e12,
        fp8=330e12,
        bandwidth=1.008e12,
        marks=("RTX 4090",),
        source="NVIDIA Ada architecture white paper, appendix A",
    ),
    Accelerator(
        key="a100",
        title="A100 SXM",
        bf16=312e12,
        fp8=None,
        bandwidth=2.039e12,
        marks=("A100",),
        source="NVIDIA A100 data sheet",
    ),
    Accelerator(
        key="mi300x",
        title="Instinct MI300X",
        bf16=1307e12,
        fp8=2615e12,
        bandwidth=5.3e12,
        marks=("MI300X",),
        source="AMD Instinct MI300X data sheet",
    ),
    Accelerator(
        key="mi355x",
        title="Instinct MI355X",
        bf16=2516e12,
        fp8=5033e12,
        bandwidth=8.0e12,
        marks=("MI355X",),
        source="AMD Instinct MI355X data sheet",
    ),
)

BY_KEY = {one.key: one for one in ACCELERATORS}


def find_accelerator(name: str) -> Accelerator:
    """The device of that name.

    Raises:
        ValueError: none has it; lists the names and suggests the nearest.
    """
    key = name.strip().lower()
    if key in BY_KEY:
        return BY_KEY[key]
    near = get_close_matches(key, BY_KEY, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"--device-name is {name!r}; expected one of {', '.join(BY_KEY)}{hint}")


def recognized(name: str) -> Accelerator | None:
    """The device that a driver's name is one of; None if the table has it not."""
    found = (one for one in ACCELERATORS if any(mark in name for mark in one.marks))
    return next(found, None)
