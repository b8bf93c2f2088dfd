"""What pruning will keep of a model, as data: made and checked before anything is changed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.anatomy.architecture import (
    Use,
    architecture_of,
    in_layer,
    names_at_depth,
    starred,
)
from unitscale.anatomy.planned import Planned, shapes_of
from unitscale.anatomy.shape import Shape, shape_of
from unitscale.compress.importance import Importance
from unitscale.compress.shape import asked_by, count, shape_for, sizes_of, target_of

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, kw_only=True)
class Plan(Planned):
    """What pruning will keep.

    Attributes:
        old: the shape before; `target` is that after.
        layers: the old layers that stay, in order.
        channels: the channels of the residual stream that stay.
        heads, kv_heads, neurons: likewise, for each layer that stays.
    """

    old: Shape
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    kv_heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    @property
    def parameters(self) -> tuple[int, int]:
        """How many there are before and after."""
        return (
            count(self.shapes, self.known, self.old),
            count(self.shapes, self.known, self.target),
        )

    def to_json(self) -> dict[str, Any]:
        """The same as data, with the numbers of parameters in place of their shapes."""
        return {**super().to_json(), "parameters": self.parameters}

    def origin(self, name: str) -> str:
        """The parameter that one of the pruned model is cut from."""
        star, layer = starred(name, self.known.layers)
        return name if layer is None else in_layer(star, self.layers[layer])

    def names(self) -> list[str]:
        """The parameters of the pruned model."""
        return names_at_depth(self.shapes, self.known.layers, self.target.depth)

    def kept(self, use: Use, layer: int | None) -> Tensor:
        """The indices of an axis that stay, int64."""
        sizes, parts, start = sizes_of(self.old), [], 0
        for space in use.spaces:
            parts.append(start + self.kept_of(space, layer))
            start += sizes[space]
        return torch.cat(parts)

    def kept_of(self, space: str, layer: int | None) -> Tensor:
        """The indices of a space that stay, in a layer of the pruned model."""
        if space == "residual":
            return torch.tensor(self.channels)
        assert layer is not None
        if space == "ffn":
            return torch.tensor(self.neurons[layer])
        heads = torch.tensor((self.heads if space == "q" else self.kv_heads)[layer])
        dim = self.old.head_dim
        return (heads[:, None] * dim + torch.arange(dim)).flatten()

    def cut(self, name: str, old: Tensor) -> Tensor:
        """What a parameter of the pruned model holds, or a moment of it.

        Args:
            old: of the shape of `origin(name)`.
        """
        star, layer = starred(name, self.known.layers)
        found = old
        for axis, use in enumerate(self.known.tensors[star]):
            if use is not None:
                found = found.index_select(axis, self.kept(use, layer).to(old.device))
        return found.clone() if found is old else found

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [
            f"{self.architecture}: {self.old}, {before:,} parameters",
            f"   to: {self.target}, {after:,} ({after / before:.0%})",
        ]
        if len(self.layers) < self.old.depth:
            lines.append(f"  layers kept: {', '.join(map(str, self.layers))}")
        if self.target.heads < self.old.heads:
            for layer, heads in zip(self.layers, self.heads, strict=True):
                lines.append(f"  heads kept in layer {layer}: {', '.join(map(str, heads))}")
        return "\n".join(lines)


def plan(
    model: nn.Module,
    target: Shape | None = None,
    *,
    importance: Importance,
    parameters: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    ffn: int | None = None,
) -> Plan:
    """Plan the pruning of a model; nothing is changed. `print` it to see what will be kept.

    Args:
        model: of `transformers`: GPT-2, Llama, BERT or ViT, with a head.
        target: a shape to prune to; or give sizes, or `parameters`.
        importance: of `measure`, `magnitude` or `drawn`. All is ranked once. Heads and neurons are
            chosen in each layer, channels for the whole model.
        parameters: a budget; the shape is found, see `candidates`.
        width, depth, heads, kv_heads, ffn: sizes to prune to; the rest stays. Heads keep their
            size and their group. Where they make up the width (GPT-2, BERT, ViT) both follow one
            another.

    Raises:
        ValueError: an unknown architecture, a target larger than the model, heads that do not
            divide, scores of another model.
    """
    known = architecture_of(model, "compress")
    config: Any = model.config
    old = shape_of(config, known)
    shapes = shapes_of(model)
    given = {"width": width, "depth": depth, "heads": heads, "kv_heads": kv_heads, "ffn": ffn}
    ways = (target is not None, parameters is not None, any(v is not None for v in given.values()))
    if sum(ways) != 1:
        what = "nothing to prune to" if not any(ways) else "more than one target"
        raise ValueError(f"compress: {what}; give a shape, parameters=, or sizes as ffn=")
    if parameters is not None:
        wanted = shape_for(shapes, old, known, parameters)
    else:
        asked = given if target is None else asked_by(target, old)
        wanted = target_of(old, known, asked)
    check_scores(importance, old)
    layers = top(importance.layers, wanted.depth)
    chosen = [choose_heads(importance.heads[layer], old, wanted) for layer in layers]
    return Plan(
        architecture=known.name,
        old=old,
        target=wanted,
        layers=layers,
        channels=top(importance.channels, wanted.width),
        heads=tuple(heads for heads, _ in chosen),
        kv_heads=tuple(groups for _, groups in chosen),
        neurons=tuple(top(importance.neurons[layer], wanted.ffn) for layer in layers),
        shapes=shapes,
    )


def check_scores(importance: Importance, old: Shape) -> None:
    """Refuse scores of another model.

    Raises:
        TypeError: they are none. ValueError: says which.
    """
    if not isinstance(importance, Importance):
        raise TypeError(
            f"compress: importance is a {type(importance).__name__}; expected what "
            "us.compress.measure, magnitude or drawn gives"
        )
    expected = {
        "heads": (old.depth, old.heads),
        "neurons": (old.depth, old.ffn),
        "channels": (old.width,),
        "layers": (old.depth,),
    }
    for name, size in expected.items():
        got = tuple(getattr(importance, name).shape)
        if got != size:
            raise ValueError(
                f"compress: the importance of {name} is of shape {list(got)}, and the model's "
                f"would be {list(size)}: measure this model"
            )


def top(scores: Tensor, number: int) -> tuple[int, ...]:
    """The indices of the highest scores, in their old order; of equal ones the first."""
    order = torch.sort(scores, descending=True, stable=True).indices[:number]
    return tuple(sorted(order.tolist()))


def choose_heads(
    scores: Tensor, old: Shape, target: Shape
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The query heads and the groups that stay in a layer: whole groups, then heads within each."""
    members, stay = old.heads // old.kv_heads, target.heads // target.kv_heads
    by_group = scores.reshape(old.kv_heads, members)
    best = by_group.sort(dim=1, descending=True).values[:, :stay].sum(1)
    groups = top(best, target.kv_heads)
    heads = [g * members + m for g in groups for m in top(by_group[g], stay)]
    return tuple(heads), groups
