"""What a command line asks a model to become: sizes, a share, or a number of parameters."""

import re
from typing import Any

__all__ = ["parse_target"]

SIZES = ("width", "depth", "heads", "kv_heads", "ffn")
FACTORS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
EXPECTED = (
    "expected sizes as width=48,ffn=128 (width, depth, heads, kv_heads, ffn), a share as 50%, or "
    "a number of parameters as 1.5M"
)


def parse_target(text: str, parameters: int) -> dict[str, Any]:
    """The arguments of `plan`.

    Args:
        parameters: of the model, which a share is of.
    Raises:
        ValueError: none of the three forms.
    """
    if "=" in text:
        sizes = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            if name not in SIZES or not value.isdecimal() or name in sizes:
                raise ValueError(f"compress: the target says {part.strip()!r}; {EXPECTED}")
            sizes[name] = int(value)
        return sizes
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%|k|M|B|)", text.strip())
    if found is None or float(found[1]) == 0 or (found[2] == "%" and float(found[1]) > 100):
        raise ValueError(f"compress: the target is {text!r}; {EXPECTED}")
    number = float(found[1])
    if found[2] == "%":
        return {"parameters": max(1, round(number / 100 * parameters))}
    return {"parameters": round(number * FACTORS[found[2]])}
