"""A first run with the quantized layers, before a model is changed for good."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from unitscale.deploy.calibration import Batch, arguments, call, eager, first_line, is_out_of_memory
from unitscale.deploy.distance import picked
from unitscale.deploy.replacement import swapped
from unitscale.deploy.scheme import Scheme
from unitscale.deploy.switch import Part, rounding, unmet

__all__ = ["check_held", "try_out"]


def try_out(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    made: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    also: Sequence[Part],
    scheme: Scheme,
) -> None:
    """Run a model with its layers replaced, and put them back.

    Batches are run until each replacement was called and each part met; most often that is one.

    Raises:
        ValueError: a layer that was replaced is called all the same, from a Python list say; a
            replacement lacks what the model asks of it; a part of `also` is nowhere; the output
            holds NaN or infinity, and that of the model itself does not.
    """
    passed: list[str] = []
    broken: int | None = None
    called: set[str] = set()
    mode = rounding(also, scheme)
    try:
        with (
            swapped(model, layers, made),
            watched(layers, passed.append),
            watched(made, called.add),
            eager(model),
            mode,
        ):
            for number, batch in enumerate(batches):
                args, kwargs = arguments(batch)
                finite = is_finite(model(*args, **kwargs))
                broken = number if broken is None and not finite else broken
                if passed or (called >= made.keys() and not unmet(mode)):
                    break
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"quantize: with its layers replaced the model raises {type(error).__name__}: "
            f"{first_line(error)}; keep the layer that it is about in full precision, "
            "skip=[its path]"
        ) from error
    if broken is not None:
        check_broken(model, batches[broken], broken, scheme)
    if passed:
        raise ValueError(
            f"quantize: {passed[0]!r} is called by another reference than its place in the model, "
            "such as a Python list, and would stay in full precision; hold it in nn.ModuleList or "
            f"call it by its place, or skip={passed[:1]!r}"
        )
    check_held(model, {path: layer for path, layer in layers.items() if path not in called})
    if missing := unmet(mode):
        raise ValueError(
            f"quantize: also={tuple(missing)!r} met nothing on the calibration batches: the model "
            "computes it by other functions than torch's, or not at all; leave it out"
        )


def is_finite(result: Any) -> bool:
    """Whether the tensor that counts in a result is finite; one without such a tensor is."""
    try:
        return bool(picked(result).isfinite().all())
    except ValueError:
        return True


def check_broken(model: nn.Module, batch: Batch, number: int, scheme: Scheme) -> None:
    """Refuse a quantized model that broke on a batch, unless the model itself does.

    Raises:
        ValueError: names the batch.
    """
    with eager(model):
        own = call(model, batch, number)
    if is_finite(own):
        raise ValueError(
            f"quantize: in {scheme.name!r} the output for calibration batch {number} holds NaN or "
            "infinity, and that of the model itself does not: a value leaves the range of a "
            "format; take another recipe, or keep the layers with the largest values: skip="
        )


@contextmanager
def watched(layers: Mapping[str, nn.Module], note: Callable[[str], None]) -> Iterator[None]:
    """A context in which calls of these layers are noted, by path.

    Not by a hook: a layer and its replacement share those.
    """

    def forward(path: str, layer: Any, *args: Any, **kwargs: Any) -> Any:
        note(path)
        return type(layer).forward(layer, *args, **kwargs)

    for path, layer in layers.items():
        layer.__dict__["forward"] = partial(forward, path, layer)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__["forward"]


def check_held(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse layers that Python attributes of a model hold too, where no batch tells of calls.

    Raises:
        ValueError: names the layer and who holds it.
    """
    paths = {id(layer): path for path, layer in layers.items()}
    for owner, module in model.named_modules():
        for name, value in vars(module).items():
            if name in OF_TORCH:
                continue
            for held in inside(value, depth=3):
                path = paths.get(id(held))
                if path is not None and held is not module:
                    raise ValueError(
                        f"quantize: {path!r} is also held by {'.'.join((owner, name)).strip('.')!r}"
                        ", which would go on calling it in full precision; hold it in "
                        "nn.ModuleList, pass calibration=batches, which show whether it is called, "
                        f"or skip={[path]!r}"
                    )


OF_TORCH = frozenset(vars(nn.Module()))


def inside(value: Any, depth: int) -> Iterator[nn.Module]:
    """The modules in a value: itself, items of containers, and what a bound method is of."""
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from inside(item, depth - 1)
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from inside(item, depth - 1)
    elif depth and isinstance(value, partial):
        yield from inside((value.func, value.args, value.keywords), depth - 1)
    elif isinstance(owner := getattr(value, "__self__", None), nn.Module):
        yield owner
