"""Whether a model is itself, and its parameters whole: nothing wraps, masks or computes them.

What changes a model by the names of its parameters would miss what stands in between: the mask of
a weight, the recipe of a part, the old graph of a wrapper. So it is refused, by name.
"""

from typing import Any

from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from unitscale.deploy.quantized import quantized_layers
from unitscale.units.forward import session_of

__all__ = ["check_whole", "refuse_wrapped", "unwrapped"]

WRAPPED = "_orig_mod"
"""Where torch.compile(model) keeps the model."""


def unwrapped(model: Any) -> Any:
    """The model that `torch.compile(model)` wraps, or the model."""
    return getattr(model, WRAPPED, model)


def refuse_wrapped(model: Any, who: str) -> None:
    """Refuse a module that has the model inside of it.

    Args:
        who: asks, for the errors.
    Raises:
        ValueError: says what to give instead.
    """
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise ValueError(
            f"{who}: this is a {type(model).__name__} around a model; give the model: model.module"
        )
    if (inside := unwrapped(model)) is not model:
        raise ValueError(
            f"{who}: this {type(inside).__name__} is wrapped by torch.compile; give the model "
            f"itself, model.{WRAPPED}, and compile afterwards"
        )


def check_whole(model: Any, who: str) -> None:
    """Refuse parameters that are not the model's whole weights.

    Raises:
        ValueError: they are quantized, spread over processes, without values, masked or computed
            from others, or a part of the model is wrapped or has a recipe of its own.
    """
    name = type(model).__name__
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"{who}: the weights of this {name} are quantized; load the full ones")
    if layers := quantized_layers(model):
        raise ValueError(
            f"{who}: {len(layers)} layers of this {name} are quantized (us.deploy.quantize), the "
            f"first is {next(iter(layers))!r}; {who} needs full weights: use the model as it was "
            "before"
        )
    for path, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor":
            raise ValueError(
                f"{who}: the parameters of this {name} are spread over processes; load a full "
                "checkpoint into one process, and use that"
            )
        if parameter.is_meta:
            raise ValueError(
                f"{who}: {path!r} of this {name} is on the device meta, where it has no values; "
                "load the model's weights first"
            )
    buffers = {path for path, _ in model.named_buffers()}
    for path, _ in model.named_parameters():
        module, _, own = path.removesuffix("_orig").rpartition(".")
        if f"{path.removesuffix('_orig')}_mask" in buffers:
            way = "us.compress.make_permanent(model)"
            if own != "weight":
                way = f"torch.nn.utils.prune.remove(module, {own!r})"
            raise ValueError(
                f"{who}: the {own} of {module!r} is masked (torch.nn.utils.prune), and its mask "
                f"would be lost; call {way} first"
            )
    for path, module in model.named_modules():
        if unwrapped(module) is not module:
            raise ValueError(
                f"{who}: {path!r} of this {name} is wrapped by torch.compile; put the module "
                f"itself back, its {WRAPPED}, or compile it in place: module.compile()"
            )
        if is_parametrized(module):
            own = next(iter(module.parametrizations))
            raise ValueError(
                f"{who}: the {own} of {path!r} is computed by a parametrization, which would be "
                f"lost; call torch.nn.utils.parametrize.remove_parametrizations(module, {own!r}) "
                "first"
            )
        if module is not model and session_of(module) is not None:
            raise ValueError(
                f"{who}: {path!r} of this {name} is scaled alone, and its recipe would be lost; "
                "call us.unscale on it first, and scale the whole model"
            )
