"""What is quantized in a model, and what is not."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from unitscale.deploy.quantized import QuantizedLayer, quantized_layers
from unitscale.deploy.scheme import Scheme

__all__ = ["Quantization", "QuantizedRow", "of_model", "remember"]

RECORD = "_quantization"


@dataclass(frozen=True, kw_only=True)
class QuantizedRow:
    """One quantized layer: how, how many bytes it takes, how many it took, and what it was."""

    path: str
    weight: str
    input: str
    bytes: int
    bytes_before: int
    kind: str = "Linear"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The quantized layers of a model, and why other layers keep full precision.

    Args:
        recipe: its name.
        also: what else is rounded: "attention", "softmax", "gelu".
        rows: the layers.
        kept: by path, why.
    """

    recipe: str
    also: tuple[str, ...]
    rows: tuple[QuantizedRow, ...]
    kept: dict[str, str]

    @property
    def bytes(self) -> int:
        """Of the weights of quantized layers, scales included."""
        return sum(row.bytes for row in self.rows)

    @property
    def bytes_before(self) -> int:
        """Of the same weights in full precision."""
        return sum(row.bytes_before for row in self.rows)

    def __str__(self) -> str:
        if not self.rows:
            lines = [f"{self.recipe}: no layer is quantized"]
            lines += [f"  full precision: {path} ({why})" for path, why in self.kept.items()]
            return "\n".join(lines)
        kinds: dict[tuple[str, str], int] = {}
        for row in self.rows:
            kinds[row.weight, row.input] = kinds.get((row.weight, row.input), 0) + 1
        lines = [
            f"{self.recipe}: {len(self.rows)} layers, {self.bytes:,} bytes of "
            f"{self.bytes_before:,} ({self.bytes_before / self.bytes:.2f} times smaller)"
        ]
        lines += [f"  {n} with weights {w}, inputs {x}" for (w, x), n in kinds.items()]
        others = [f"{row.path} ({row.kind})" for row in self.rows if row.kind != "Linear"]
        if others:
            more = f" and {len(others) - 2} more" if len(others) > 2 else ""
            lines.append(
                f'  no nn.Linear: {", ".join(others[:2])}{more}; exported by format="safetensors" '
                "alone, or keep them by skip="
            )
        lines += [f"  also rounded: {', '.join(self.also)}"] * bool(self.also)
        lines += [f"  full precision: {path} ({why})" for path, why in self.kept.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"bytes": self.bytes, "bytes_before": self.bytes_before}


def remember(
    model: nn.Module, scheme: Scheme, kept: Mapping[str, str], also: Sequence[str]
) -> None:
    """Note in a model what its layers cannot tell."""
    model.__dict__[RECORD] = (scheme.name, dict(kept), tuple(also))


def of_model(model: nn.Module) -> Quantization:
    """What is quantized in a model; no layer, where a target put all of them back.

    Raises:
        ValueError: it was never quantized.
    """
    layers = quantized_layers(model)
    if not layers and RECORD not in model.__dict__:
        raise ValueError(
            f"this {type(model).__name__} is not quantized; call us.deploy.quantize(model, recipe)"
        )
    first = next((layer.scheme.name for layer in layers.values()), "")
    name, kept, also = model.__dict__.get(RECORD, (first, {}, ()))
    rows = tuple(row_of(path, layer) for path, layer in layers.items())
    return Quantization(recipe=name, also=also, rows=rows, kept=dict(kept))


def row_of(path: str, layer: QuantizedLayer) -> QuantizedRow:
    """One layer."""
    scheme = layer.scheme
    static = "static" if layer.input_scale is not None else "dynamic"
    x = "as they are" if scheme.input is None else f"{scheme.input} {static}"
    size = layer.in_features * layer.out_features * layer.dtype.itemsize
    return QuantizedRow(
        path=path,
        weight=str(scheme.weight),
        input=x,
        bytes=layer.nbytes,
        bytes_before=size,
        kind=layer.kind,
    )
