"""`unitscale formats`: the number formats as a table. Imports no torch."""

import json as json_module
from typing import Any

from unitscale.cli.option import Json
from unitscale.cli.output import show


def formats(json: Json = False) -> None:
    """List the number formats: their bits, their range and what they can express."""
    rows = [describe(fmt) for fmt in catalogue()]
    if json:
        print(json_module.dumps(rows, indent=2))
        return
    from unitscale.report import plain_table

    show(plain_table([{k: v for k, v in row.items() if k != "source"} for row in rows]))


def catalogue() -> list[Any]:
    """The formats, widest first."""
    from unitscale.formats import FORMATS

    return sorted(FORMATS.values(), key=lambda fmt: -fmt.bits)


def describe(fmt: Any) -> dict[str, Any]:
    """One row of the table."""
    return {
        "format": fmt.name,
        "bits": fmt.bits,
        "exponent": fmt.exponent_bits,
        "mantissa": fmt.mantissa_bits,
        "bias": fmt.bias,
        "max": fmt.max,
        "min normal": fmt.min_normal,
        "min subnormal": fmt.min_subnormal,
        "epsilon": fmt.epsilon,
        "inf": fmt.has_inf,
        "nan": fmt.has_nan,
        "source": fmt.source,
    }
