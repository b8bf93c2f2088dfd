"""What a scaled model leaves in each of its modules, which has no recipe without the model.

A copy of a part, or a pickle of it, is plain; a compiler that a person gives to a part would see
the plain part. A `Part` stands where both look, and says so: in the instance's `compile`.
"""

import warnings
import weakref
from typing import Any

from torch import nn

__all__ = ["give_parts", "take_parts", "warn_of_pickle"]

ATTRIBUTE = "compile"


def give_parts(model: nn.Module, recipe: str) -> None:
    """Put a `Part` into each module of a model but itself that has torch's own `compile`."""
    for path, module in model.named_modules():
        found: Any = module.compile
        is_torchs = getattr(found, "__func__", None) is nn.Module.compile
        if module is not model and (is_torchs or isinstance(found, Part)):
            module.__dict__[ATTRIBUTE] = Part(module, path, model, recipe)


def take_parts(model: nn.Module) -> None:
    """Undo `give_parts`."""
    for module in model.modules():
        if isinstance(module.__dict__.get(ATTRIBUTE), Part):
            del module.__dict__[ATTRIBUTE]


def warn_of_pickle(name: str, recipe: str) -> None:
    """Say that a pickle is plain: in the same words for a model and its parts, to be told once."""
    warnings.warn(
        f"this {name} is pickled without its recipe {recipe!r}: what is loaded is plain. Save the "
        "model's state_dict and us.save_units, and call us.unit_scale on a plain model.",
        stacklevel=3,
    )


class Part:
    """The `compile` of one module of a scaled model.

    Args:
        path: of the module in the model.
        recipe: the name of the model's recipe.
    """

    def __init__(self, module: nn.Module, path: str, model: nn.Module, recipe: str) -> None:
        self.module, self.model = weakref.ref(module), weakref.ref(model)
        self.path, self.recipe, self.name = path, recipe, type(model).__name__

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """What is called as `module.compile()`: it would take the recipe away, so nothing is."""
        warnings.warn(
            f"compile() of {self.path!r} changes nothing: it is a part of a scaled {self.name}, "
            f"which compiles it under recipe {self.recipe!r} (choose the compiler with inner=).",
            stacklevel=2,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """For a part of a copied model, the same; for one that is copied alone, torch's own.

        Of several parts that are copied together the first warns.
        """
        module, model = self.module(), self.model()
        assert module is not None
        copied: nn.Module = memo[id(module)]
        if model is not None and id(model) in memo:
            return Part(copied, self.path, memo[id(model)], self.recipe)
        told = -id(model)  # no object's identity is negative
        if told not in memo:
            memo[told] = None
            warnings.warn(
                f"{self.path!r} of a scaled {self.name} is copied without recipe {self.recipe!r}: "
                "the copy is plain. Copy the whole model, or call us.unit_scale on the copy.",
                stacklevel=2,
            )
        return type(copied).compile.__get__(copied)

    def __reduce__(self) -> Any:
        """The plain `compile`: a pickle can be loaded without this library."""
        warn_of_pickle(self.name, self.recipe)
        return getattr, (self.module(), ATTRIBUTE)
