"""Where in a vision transformer prompts go in, and where its features come out."""

from dataclasses import dataclass

from torch import Tensor, nn

from unitscale.anatomy.whole import refuse_wrapped, unwrapped

__all__ = ["Found", "Parts", "find"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Paths of the modules of a classifier that works on a class token.

    Args:
        embeddings: returns tokens (images, tokens, width), the class token first.
        blocks: a ModuleList; each block returns tokens, or a tuple that begins with them.
        head: a Linear, called with the class token of the last block after the last norm.
    """

    embeddings: str
    blocks: str
    head: str


KNOWN = {
    "ViTForImageClassification": Parts(
        embeddings="vit.embeddings", blocks="vit.layers", head="classifier"
    ),
    "DeiTForImageClassification": Parts(
        embeddings="deit.embeddings", blocks="deit.layers", head="classifier"
    ),
}
"""Classes of transformers whose parts are known."""

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""What a parameter that is a class token is called."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The modules that `Parts` names, and the width of their tokens."""

    embeddings: nn.Module
    blocks: tuple[nn.Module, ...]
    head: nn.Module
    width: int


def find(model: nn.Module, parts: Parts | None, caller: str) -> Found:
    """The parts of a model.

    Raises:
        TypeError: not a module. ValueError: a model that is wrapped, without a class token, whose
            parts are not known, or that does not have the parts given.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: got {type(model).__name__}; expected a torch.nn.Module.")
    model = unwrapped(model)  # of torch.compile(model): the passes run in eager code
    refuse_wrapped(model, caller)
    name = type(model).__name__
    tokens = [p for path, p in model.named_parameters() if path.rpartition(".")[2] in CLASS_TOKENS]
    if not tokens and parts is None:
        raise ValueError(
            f"{caller}: {name} has no class token, whose features this shifts and compares; "
            "expected a vision transformer with one, such as ViTForImageClassification (for a "
            "token of another name, pass parts=us.adapt.Parts(...))."
        )
    if parts is not None and not isinstance(parts, Parts):
        raise TypeError(
            f"{caller}: parts is {parts!r}; expected us.adapt.Parts(embeddings=..., blocks=..., "
            "head=...)."
        )
    parts = parts or KNOWN.get(name)
    if parts is None:
        raise ValueError(
            f"{caller}: the parts of {name} are not known; pass "
            f"parts=us.adapt.Parts(embeddings=..., blocks=..., head=...), paths of its modules. "
            f"Known: {', '.join(KNOWN)}."
        )
    embeddings, blocks, head = (
        _at(model, path, caller) for path in (parts.embeddings, parts.blocks, parts.head)
    )
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(
            f"{caller}: {parts.head!r} of {name} is a {type(head).__name__}; expected a linear "
            "layer, with a weight of (classes, width)."
        )
    if len(weight) < 2:
        raise ValueError(
            f"{caller}: {parts.head!r} of {name} gives one class; expected two or more: entropy "
            "and centers of one say nothing."
        )
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        raise ValueError(
            f"{caller}: {parts.blocks!r} of {name} is a {type(blocks).__name__}; expected a "
            "ModuleList of at least one block."
        )
    return Found(embeddings=embeddings, blocks=tuple(blocks), head=head, width=weight.shape[1])


def _at(model: nn.Module, path: str, caller: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"{caller}: {type(model).__name__} has no module {path!r}; its children are {children}."
        ) from None
