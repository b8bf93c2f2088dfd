"""One forward pass of a model with prompts put in and features taken out, by hooks.

The hooks are there during the pass alone. They run inside of the graph of a scaled model, so that
the tokens of the prompts, and the shifted features, meet the same products in the same formats. A
plain model is not compiled in the pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unitscale.adapt.parts import Found
from unitscale.adapt.stream import logits_of
from unitscale.anatomy.output import uncompiled

__all__ = ["Pass", "Probe", "probe_of"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one forward pass gave.

    Args:
        logits: (images, classes), of the features as they are.
        shifted: the same of the features plus the shift; `logits` where there is none.
        features: (blocks, images, width) in float32, the class token after each block; the last is
            what the head gets.
        spread: standard deviation of the tokens that go into the first block.
    """

    logits: Tensor
    shifted: Tensor
    features: Tensor
    spread: Tensor


class Probe:
    """The hooks for one model, and what they put in and take out.

    Attributes:
        prompts: (1, prompts, width), put behind the class token; None puts in nothing.
        shift: (width,), added to a second copy of the head's input; None makes no copy.
    """

    def __init__(self) -> None:
        self.prompts: Tensor | None = None
        self.shift: Tensor | None = None
        self.features: list[Tensor] = []
        self.spread: list[Tensor] = []

    def put_prompts(self, module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
        """A hook on the embeddings."""
        self.spread.append(tokens.float().std())
        if self.prompts is None:
            return tokens
        prompts = self.prompts.to(tokens).expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)

    def take(self, module: nn.Module, args: Any, tokens: Any) -> None:
        """A hook on each block but the last."""
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        # A copy: a view would hold the tokens of every block until the end.
        self.features.append(tokens[:, 0].to(torch.float32, copy=True))

    def enter_head(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """A hook before the head: one product for the features and the shifted ones."""
        self.features.append(args[0].to(torch.float32, copy=True))
        if self.shift is None:
            return None
        return (torch.cat([args[0], args[0] + self.shift.to(args[0])]), *args[1:])

    @contextmanager
    def on(self, found: Found) -> Iterator[None]:
        """Have the hooks on the parts of the model inside of the context alone."""
        handles = [
            found.embeddings.register_forward_hook(self.put_prompts),
            *(block.register_forward_hook(self.take) for block in found.blocks[:-1]),
            found.head.register_forward_pre_hook(self.enter_head),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.prompts = self.shift = None
            self.features, self.spread = [], []

    def run(
        self,
        model: nn.Module,
        found: Found,
        images: Tensor,
        *,
        prompts: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Pass:
        """One forward pass.

        Raises:
            ValueError: the parts do not do what `Parts` says.
        """
        with self.on(found), uncompiled(model):
            self.prompts, self.shift = prompts, shift
            logits = logits_of(model, model(images), "us.adapt")
            features, spread = self.features, self.spread
        shapes = {tuple(f.shape) for f in features}
        rows = len(images) * (1 if shift is None else 2)
        if (
            shapes != {(len(images), found.width)}
            or len(features) != len(found.blocks)
            or len(spread) != 1
            or len(logits) != rows
        ):
            raise ValueError(
                f"{type(model).__name__}: the parts given took out {len(features)} features of "
                f"shapes {sorted(shapes)} and {len(logits)} rows of logits; expected "
                f"{len(found.blocks)} of ({len(images)}, {found.width}) and {rows}: the head has "
                "to be called once, with the class token of each image."
            )
        return Pass(
            logits=logits[: len(images)],
            shifted=logits[-len(images) :],
            features=torch.stack(features),
            spread=spread[0],
        )


# A graph captured with the hooks of one probe is no use with another's, and Dynamo gives up on a
# model after some captures. So all that adapt one model share its probe, which goes with the model.
_PROBES: WeakKeyDictionary[nn.Module, Probe] = WeakKeyDictionary()


def probe_of(model: nn.Module) -> Probe:
    """The probe of a model: one for all that adapt it."""
    return _PROBES.setdefault(model, Probe())
