"""Which parameters of a model a matrix product takes, and with which sizes; which are left out.

The model is not run, so what a parameter is for is known by its module and its shape:

    nn.Linear, nn.MultiheadAttention, Conv1D of transformers, routers     rows x in x out
    experts [E, a, b], of which a token takes top_k                       E of rows * top_k / E
    convolutions, recurrent layers, what is looked up or not known        left out, with the reason
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from unitscale.gemm.payoff import Shape

__all__ = ["LeftOut", "Weights", "weights_of"]

TOP_K = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_top_k")
HIDDEN = ("hidden_dim", "hidden_size")
BACK = ("down", "w2", "output")
"""In the names of experts' matrices that lead back to the width of the model."""

CONVOLUTION = "torch multiplies convolutions in no FP8 kernel: a recipe emulates them"
RECURRENT = "torch runs a recurrent layer as one op, which no recipe rounds"
LOOKED_UP = "it is looked up, and no product takes it"
UNKNOWN = "its module is not known, so neither is whether a product takes it; use --shapes"
EXPERTS = "how many of these matrices a token takes is not known; use --shapes"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A parameter that is not weighed, and why."""

    name: str
    shape: tuple[int, ...]
    why: str

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The layers of a model, by name, and what else it has of two and more axes.

    `elements` are those of the weights that are weighed.
    """

    layers: Sequence[tuple[str, Shape]]
    left_out: Sequence[LeftOut]
    elements: int


def weights_of(model: nn.Module, rows: int) -> Weights:
    """Every parameter of two and more axes, as the weight of layers or as left out.

    Args:
        rows: of every layer: tokens, pixels, samples of a batch. Experts share them.
    """
    layers: list[tuple[str, Shape]] = []
    left_out: list[LeftOut] = []
    elements = 0
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.dim() < 2 or "bias" in name:
                continue
            full = f"{path}.{name}".removeprefix(".")
            called = path if name == "weight" else full
            found = taken(model, path, module, name, parameter, rows)
            if isinstance(found, str):
                left_out.append(LeftOut(name=full, shape=tuple(parameter.shape), why=found))
                continue
            elements += parameter.numel()
            several = len(found) > 1
            layers += [(f"{called}[{i}]" if several else called, s) for i, s in enumerate(found)]
    return Weights(layers=layers, left_out=left_out, elements=elements)


def taken(
    model: nn.Module, path: str, module: nn.Module, name: str, weight: torch.Tensor, rows: int
) -> list[Shape] | str:
    """The products that take a parameter, or why it is left out."""
    sizes = tuple(weight.shape)
    kind = type(module).__name__
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return LOOKED_UP
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return RECURRENT
    if isinstance(module, nn.modules.conv._ConvNd):
        return CONVOLUTION
    if len(sizes) == 2 and isinstance(module, nn.Linear) and name == "weight":
        return [Shape(rows, sizes[1], sizes[0])]
    if len(sizes) == 2 and isinstance(module, nn.MultiheadAttention) and "proj" in name:
        return [Shape(rows, sizes[1], sizes[0])]
    if len(sizes) == 2 and kind == "Conv1D" and name == "weight":
        return [Shape(rows, sizes[0], sizes[1])]
    if len(sizes) == 2 and kind.endswith(("Router", "Gate")) and name == "weight":
        return [Shape(rows, sizes[1], sizes[0])]
    if len(sizes) == 3 and "expert" in f"{path}.{kind}".lower():
        top_k = number_near(model, path, TOP_K)
        if top_k is None:
            return EXPERTS
        each = max(rows * min(top_k, sizes[0]) // sizes[0], 1)
        return [expert(each, module, name, sizes)] * sizes[0]
    return UNKNOWN


def expert(rows: int, module: nn.Module, name: str, sizes: tuple[int, ...]) -> Shape:
    """One of the experts: [out, in] as `nn.Linear` has it, unless the width says otherwise."""
    known = (getattr(module, attribute, None) for attribute in HIDDEN)
    hidden = next((size for size in known if isinstance(size, int)), None)
    leads_back = any(part in name for part in BACK)
    out, into = sizes[1:]
    is_turned = hidden is not None and hidden != (out if leads_back else into)
    return Shape(rows, out, into) if is_turned else Shape(rows, into, out)


def number_near(model: nn.Module, path: str, names: Sequence[str]) -> int | None:
    """A whole number that a module, one beside it or one around it has under one of these names."""
    for module in around(model, path):
        for place in (module, getattr(module, "config", None)):
            for name in names:
                found = getattr(place, name, None)
                if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                    return found
    return None


def around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """A module, then each module around it, after those that are directly inside of that."""
    yield model.get_submodule(path)
    while path:
        path = path.rpartition(".")[0]
        parent = model.get_submodule(path)
        yield from parent.children()
        yield parent
