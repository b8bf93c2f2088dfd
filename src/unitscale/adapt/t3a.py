"""T3A: classes are where the features that the model is sure of are.

Source: Iwasawa and Matsuo 2021, "Test-Time Classifier Adjustment Module", and the authors' code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitscale.adapt.argument import check_whole
from unitscale.adapt.parts import Parts, find
from unitscale.adapt.probe import probe_of
from unitscale.adapt.score import entropy
from unitscale.adapt.stream import check_images, check_mode

__all__ = ["T3A"]


class T3A:
    """Adapts the classifier alone, by one forward pass a batch: `logits = t3a(images)`.

    A class is the mean direction of its supports: its row of the head's weight at first, and then
    the features of the stream that were given to it with the lowest entropies. The model does not
    change and keeps its recipe; the last product, features by classes, is one of T3A's own in
    float32. The logits are not probabilities' logarithms: their size is that of the features.

    Args:
        model: in evaluation mode, as for `FOA`.
        supports: the most a class has.
        parts: as for `FOA`.
    Raises:
        TypeError, ValueError: as `FOA`.
    """

    def __init__(self, model: nn.Module, *, supports: int = 20, parts: Parts | None = None) -> None:
        self.found = find(model, parts, "T3A")
        check_mode(model, "T3A")
        check_whole("T3A", "supports", supports, 1)
        self.model, self.supports = model, supports
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        head: Any = self.found.head
        weight = head.weight.detach().float()
        bias = getattr(head, "bias", None)
        bias = None if bias is None else bias.detach().float()
        logits = F.linear(weight, weight, bias)
        self.features, self.classes = weight.clone(), logits.argmax(dim=1)
        self.entropies = entropy(logits)
        self.size: tuple[int, ...] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch, adapted on the way.

        Raises:
            TypeError, ValueError: as `FOA`. Nothing was changed.
        """
        check_mode(self.model, "T3A")
        check_images(images, "T3A", self.size)
        with torch.no_grad():
            got = probe_of(self.model).run(self.model, self.found, images)
            features, logits = got.features[-1], got.logits.float()
            if not bool(torch.isfinite(features).all() and torch.isfinite(logits).all()):
                raise ValueError(
                    f"T3A: {type(self.model).__name__} gives NaN or infinity for this batch; "
                    "expected finite logits; does it without adaptation?"
                )
            pool = torch.cat([self.features, features])
            classes = torch.cat([self.classes, logits.argmax(dim=1)])
            entropies = torch.cat([self.entropies, entropy(logits)])
            chosen = self._surest(classes, entropies)
            pool, classes, entropies = pool[chosen], classes[chosen], entropies[chosen]
            one_hot = F.one_hot(classes, logits.shape[1]).to(pool)
            centers = F.normalize(F.normalize(pool, dim=1).T @ one_hot, dim=0)
            answer = features @ centers
        self.features, self.classes, self.entropies = pool, classes, entropies
        self.size = tuple(images.shape[1:])
        return answer

    def _surest(self, classes: Tensor, entropies: Tensor) -> Tensor:
        """Places of the supports of lowest entropy of each class."""
        order = entropies.argsort(stable=True)
        chosen = [order[classes[order] == c][: self.supports] for c in set(classes.tolist())]
        return torch.cat(chosen).sort().values
