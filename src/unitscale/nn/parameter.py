"""Parameters that say their kind, for modules that are not of this library.

A kind that is an attribute of a tensor is soon lost: `deepcopy` of a parameter, FSDP2, which puts
DTensors in the place of parameters, and whoever wraps `.data` anew leave it behind. So when a
module registers such a parameter, the module keeps the statement, under the parameter's name. It is
then in the module's copies and pickles, and holds for whatever tensor has that name later.
"""

from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from unitscale.scaling.kind import KINDS, Kind

Statement = tuple[Kind, int | None]
"""Kind and width. Builtin types only: `torch.load` with `weights_only` reads them."""

ON_PARAMETER, ON_MODULE = "unitscale_kind", "stated_kinds"


def Parameter(  # noqa: N802 - stands where torch's class does
    data: Tensor, kind: Kind, *, width: int | None = None, requires_grad: bool = True
) -> nn.Parameter:
    """A `torch.nn.Parameter` whose learning rate follows from its kind in `us.optim`.

    Args:
        data: its first value, a floating-point tensor: N(0, 1) for input, hidden and output, 0 for
            bias, 1 for norm.
        kind: "input", "hidden", "output", "bias" or "norm"; see `scaling.kind`.
        width: the size that the rule divides by: of hidden and output the fan-in, of input the
            features that it makes. None reads the fan-in of torch's layout, [out, in, *kernel]; for
            `x @ w` with w [in, out] give it. Of input it has to be given, because a table
            [entries, features] looks like a matrix [out, in].
    Raises:
        TypeError: data is no floating-point tensor, or width no integer.
        ValueError: an unknown kind; a width that is missing, below 1, or without a meaning.
    Source: u-muP (Blake et al. 2024), table 2.
    """
    if not isinstance(data, Tensor) or not data.is_floating_point():
        got = data.dtype if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"Parameter: data is {got}; expected a floating-point tensor.")
    if kind not in KINDS:
        raise ValueError(f"Parameter: kind is {kind!r}; the kinds are {', '.join(KINDS)}.")
    check_width(data, kind, width)
    remember_kinds()
    parameter = nn.Parameter(data, requires_grad)
    setattr(parameter, ON_PARAMETER, (kind, width))
    return parameter


def check_width(data: Tensor, kind: Kind, width: int | None) -> None:
    """Raise unless the rule of this kind has the size that it asks for."""
    shape = tuple(data.shape)
    if width is None:
        if kind == "input":
            raise ValueError(
                f"Parameter: kind 'input' of shape {shape} needs width=, the number of features "
                "that it makes: the last size of a table, the first of a matrix [out, in]."
            )
        if kind in ("hidden", "output") and len(shape) < 2:
            raise ValueError(
                f"Parameter: kind {kind!r} needs at least 2 dimensions to read its fan-in from, "
                f"and the shape is {shape}; give width=, or kind 'bias' or 'norm'."
            )
        return
    if isinstance(width, bool) or not isinstance(width, int):
        raise TypeError(f"Parameter: width is {width!r}; expected an integer.")
    if kind in ("bias", "norm"):
        raise ValueError(f"Parameter: width={width} has no meaning for kind {kind!r}; leave it out")
    if width < 1:
        raise ValueError(f"Parameter: width is {width}; expected at least 1.")


@cache
def remember_kinds() -> None:
    """Have torch tell us of parameters that modules register, from the first one with a kind on."""

    def remember(module: nn.Module, name: str, parameter: Any) -> None:
        stated = getattr(parameter, ON_PARAMETER, None)
        if stated is not None:
            vars(module).setdefault(ON_MODULE, {})[name] = stated

    register_module_parameter_registration_hook(remember)


def stated_kind(module: nn.Module | None, name: str, parameter: Tensor) -> Statement | None:
    """What `Parameter` said, from the module that holds it under this name, or else from itself."""
    stated = vars(module).get(ON_MODULE, {}).get(name) if module is not None else None
    return stated if stated is not None else getattr(parameter, ON_PARAMETER, None)
