"""A compressed model as packed bits in one file, and back.

Matrices are stored as codes of 3 to 8 bits or as FP16, all of them in one stream of bits. Of a
pruned model only the weights that are left are in it, and a bitmap says where they were. Tables and
norms are FP16. `us.deploy` makes the codes; it keeps integers of fewer than 8 bits in a byte each,
so the packing is done here.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unitscale.deploy import QuantizedLayer, Scheme
from unitscale.formats import Codec, FloatFormat, PerAxis, Specials, encode
from unitscale.report.atomic import replacing

FULL = 16  # bits of a weight that is not quantized
FP8 = "E4M3"  # in the place of bits

Masks = Mapping[str, Tensor]


def integers(bits: int) -> Scheme:
    """Weights as symmetric whole numbers, a scale for each output channel."""
    fmt = FloatFormat(
        name=f"INT{bits}",
        exponent_bits=1,
        mantissa_bits=bits - 2,
        bias=3 - bits,
        specials=Specials.NEGATIVE_ZERO_NAN,
    )
    return Scheme(name=f"int{bits}-weight", weight=Codec(format=fmt, granularity=PerAxis()))


def to_stream(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """The low `bits` of every value, one after the other."""
    places = np.arange(bits, dtype=np.uint16)
    return np.packbits(((values[:, None] >> places) & 1).astype(np.uint8).reshape(-1))


def from_stream(stream: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """The inverse of `to_stream`."""
    single = np.unpackbits(stream, count=bits * count).reshape(count, bits).astype(np.uint16)
    return (single << np.arange(bits, dtype=np.uint16)).sum(axis=1, dtype=np.uint16)


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """What is compressed: every linear layer, quantized or not."""
    kinds = (nn.Linear, QuantizedLayer)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def codes_of(module: nn.Module) -> NDArray[np.uint16]:
    """The bits of each weight of a layer, row after row."""
    if isinstance(module, QuantizedLayer):
        codes = module.weight_codes
        if codes.dtype != torch.int8:
            return codes.view(torch.uint8).numpy().astype(np.uint16).reshape(-1)
        fmt = module.scheme.weight.element
        return encode(codes.float(), fmt).numpy().astype(np.uint16).reshape(-1)
    return module.weight.detach().half().numpy().view(np.uint16).reshape(-1)


def save(model: nn.Module, masks: Masks, bits: int, path: Path) -> None:
    """Write a model, quantized to `bits` or plain at 16.

    Args:
        masks: of each matrix, what is left; empty if nothing was pruned.
    """
    layers = matrices(model)
    codes = [codes_of(layer) for layer in layers.values()]
    kept = [masks[name].numpy().reshape(-1) for name in layers] if masks else []
    if kept:
        codes = [own[mask] for own, mask in zip(codes, kept, strict=True)]
    parts = {"codes": torch.from_numpy(to_stream(np.concatenate(codes), bits))}
    if kept:
        parts["mask"] = torch.from_numpy(np.packbits(np.concatenate(kept)))
    scales = [m.weight_scale.reshape(-1) for m in layers.values() if isinstance(m, QuantizedLayer)]
    if scales:
        parts["scales"] = torch.cat(scales)
    parts["rest"] = torch.cat([p.detach().half().reshape(-1) for p in rest(model).values()])
    with replacing(path) as temporary:
        save_file(parts, temporary)


def rest(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that no matrix holds: tables and norms."""
    own = {f"{name}.weight" for name in matrices(model)}
    return {name: value for name, value in model.named_parameters() if name not in own}


@torch.no_grad()
def restore(model: nn.Module, path: Path, scheme: Scheme | None) -> nn.Module:
    """Put the values of a file into a plain model of the same shape."""
    parts = load_file(path)
    layers = matrices(model)
    counts = [layer.weight.numel() for layer in layers.values()]
    total = sum(counts)
    mask = np.ones(total, dtype=bool)
    if "mask" in parts:
        mask = np.unpackbits(parts["mask"].numpy(), count=total).astype(bool)
    bits = FULL if scheme is None else scheme.weight.element.bits
    codes = np.zeros(total, dtype=np.uint16)
    codes[mask] = from_stream(parts["codes"].numpy(), bits, int(mask.sum()))
    if scheme is None:
        values = torch.from_numpy(codes.view(np.float16)).float()
    else:
        table = torch.tensor(scheme.weight.element.values(), dtype=torch.float32)
        values = table[torch.from_numpy(codes.astype(np.int64))]
    rows = 0
    for layer, own in zip(layers.values(), values.split(counts), strict=True):
        weight = own.view(layer.weight.shape)
        if scheme is not None:
            weight = weight * parts["scales"][rows : rows + len(weight), None]
            rows += len(weight)
        layer.weight.copy_(weight)
    others = rest(model)
    halves = parts["rest"].float().split([value.numel() for value in others.values()])
    for value, half in zip(others.values(), halves, strict=True):
        value.copy_(half.view(value.shape))
    return model


def counted_bytes(model: nn.Module, masks: Masks, bits: int) -> float:
    """Weights left × bits / 8, a bit a weight for the map, four bytes a scale, two for the rest."""
    layers = matrices(model)
    total = sum(masks[name].numel() for name in layers) if masks else 0
    left = sum(int(mask.sum()) for mask in masks.values()) if masks else 0
    if not masks:
        left = sum(layer.weight.numel() for layer in layers.values())
    rows = sum(len(layer.weight) for layer in layers.values()) if bits < FULL else 0
    halves = sum(value.numel() for value in rest(model).values())
    return left * bits / 8 + total / 8 + 4 * rows + 2 * halves


def saved_bytes(path: Path) -> int:
    """The bytes of the tensors in a file, without its header."""
    return sum(part.nbytes for part in load_file(path).values())
