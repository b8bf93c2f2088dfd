"""What the counterparts of torch's modules share: constraint, initialization, parameter kinds."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from unitscale.functional.arguments import check_mult

UNSUPPORTED = ("inplace", "return_indices", "divisor_override")


class Constrained(nn.Module):
    """Mixed in before a torch module: its constructor arguments, then `constraint`.

    Weights start as N(0, 1) and biases at 0: the scale of a layer lives in its op, not in its
    parameters. `parameter_kinds` names the u-muP kind of each parameter; it lives on the class, so
    that deepcopy, pickle and sharding cannot lose it.

    Raises:
        ValueError: an option of torch's that a scaled op does not have, such as `inplace`.
    """

    parameter_kinds: ClassVar[dict[str, str]] = {"weight": "hidden", "bias": "bias"}

    def __init__(
        self, *args: Any, constraint: str | None = "to_output_scale", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        for option in UNSUPPORTED:
            if value := getattr(self, option, None):
                raise ValueError(
                    f"{type(self).__name__}: {option}={value} is not supported; leave it out."
                )
        self.constraint = constraint

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 1) and zero the biases; torch's constructor calls this."""
        for name, parameter in self.named_parameters(recurse=False):
            if self.parameter_kinds[name] == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter)

    def extra_repr(self) -> str:
        """torch's own, with the constraint where it is not the default."""
        parts = [super().extra_repr()]
        if self.constraint != "to_output_scale":
            parts.append(f"constraint={self.constraint!r}")
        return ", ".join(filter(None, parts))


class Multiplied(Constrained):
    """`Constrained`, and `mult`: what the input of the function is multiplied by.

    u-muP's multiplier of an activation or a softmax. The factors are those of `f(mult * x)`, so
    that output and gradient keep unit scale; at 1 nothing is multiplied.

    Raises:
        ValueError: `mult` is not a positive number.
    """

    mult = 1.0  # of a module that was pickled before there was one

    def __init__(self, *args: Any, mult: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_mult(type(self).__name__, mult=mult)
        self.mult = mult

    def extra_repr(self) -> str:
        """With the multiplier where it is not 1."""
        parts = [super().extra_repr(), "" if self.mult == 1 else f"mult={self.mult}"]
        return ", ".join(filter(None, parts))


def counterpart(
    module: type[nn.Module], function: Callable[..., Tensor], *attributes: str
) -> type[nn.Module]:
    """The unit-scaled counterpart of a torch module that has no parameters and calls a function.

    `function` gets the input, the named attributes of the module and its constraint; the class
    keeps the constructor of `module` and adds `constraint`, and `mult` if the attributes name it.
    """
    mixin = Multiplied if "mult" in attributes else Constrained

    def forward(self: Any, x: Tensor) -> Tensor:
        arguments = {name: getattr(self, name) for name in attributes}
        return function(x, **arguments, constraint=self.constraint)

    # Pickle finds the class where users do.
    home = __name__.rpartition(".")[0]
    return type(module.__name__, (mixin, module), {"forward": forward, "__module__": home})
