"""What the counterparts of torch's modules share: constraint, initialization, parameter kinds."""

from typing import Any, ClassVar

from torch import nn


class Constrained(nn.Module):
    """Mixed in before a torch module: its constructor arguments, then `constraint`.

    Weights start as N(0, 1) and biases at 0: the scale of a layer lives in its op, not in its
    parameters. `parameter_kinds` names the u-muP kind of each parameter; it lives on the class, so
    that deepcopy, pickle and sharding cannot lose it.
    """

    parameter_kinds: ClassVar[dict[str, str]] = {"weight": "hidden", "bias": "bias"}

    def __init__(
        self, *args: Any, constraint: str | None = "to_output_scale", **kwargs: Any
    ) -> None:
        if kwargs.get("inplace"):
            raise ValueError(
                f"{type(self).__name__}(inplace=True): a scaled op needs its input for its own "
                "backward pass; leave inplace out."
            )
        super().__init__(*args, **kwargs)
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
