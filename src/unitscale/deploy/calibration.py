"""Batches that a model is run on: what they must be, and what its layers see of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.deploy.histogram import Histogram

__all__ = ["Batch", "call", "checked", "eager", "seen"]

Batch = Any
"""What a model is called on: a tensor, a tuple of arguments, or a mapping of keyword arguments."""


def checked(batches: Iterable[Batch] | None) -> list[Batch]:
    """The batches, read once.

    Raises:
        TypeError: they are no iterable of batches. ValueError: there is none, or one holds NaN.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(
            f"quantize: calibration is a {type(batches).__name__}; expected several batches, each "
            "a tensor, a tuple of arguments or a dict: put a single one in a list"
        )
    found = list(batches)
    if not found:
        raise ValueError("quantize: calibration is empty; pass some batches, 32 sentences or more")
    for number, batch in enumerate(found):
        for name, x in tensors_in(batch):
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise ValueError(
                    f"quantize: calibration batch {number} holds NaN or infinity in {name}; remove "
                    "it"
                )
            if not x.numel():
                raise ValueError(f"quantize: calibration batch {number} is empty in {name}")
    return found


def tensors_in(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch, with a name each."""
    args, kwargs = arguments(batch)
    every = [*((f"argument {i}", x) for i, x in enumerate(args)), *kwargs.items()]
    yield from ((name, x) for name, x in every if isinstance(x, Tensor))


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as positional and keyword arguments."""
    if isinstance(batch, Mapping):
        return (), {str(key): value for key, value in batch.items()}
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """A context in which a model evaluates in eager code, whatever is compiled of it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, False)


def call(model: nn.Module, batch: Batch, number: int) -> Any:
    """What a model makes of a batch.

    Raises:
        ValueError: the model does not take it; says the shapes and what it raised.
    """
    args, kwargs = arguments(batch)
    try:
        return model(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors_in(batch))
        text = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"quantize: calibration batch {number} ({shapes}) does not fit the model, which raised "
            f"{type(error).__name__}: {text}"
        ) from error


def seen(
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Mapping[str, nn.Module],
    progress: Callable[[str, int, int], None],
) -> dict[str, Histogram]:
    """The magnitudes that come into each layer over all batches.

    Raises:
        ValueError: a batch does not fit; a layer never ran, or got NaN.
    """
    found = {path: Histogram() for path in layers}
    ran: set[str] = set()

    def hook(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            found[path].add(x)
            ran.add(path)

        return note

    handles = [
        layer.register_forward_pre_hook(hook(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        with eager(model):
            for number, batch in enumerate(batches):
                call(model, batch, number)
                progress("calibrate", number + 1, len(batches))
    finally:
        for handle in handles:
            handle.remove()
    if idle := [path for path in layers if path not in ran]:
        raise ValueError(
            f"quantize: {idle[0]!r} and {len(idle) - 1} other layers never ran on the calibration "
            f"batches; add some that reach them, or keep them in full precision: skip={idle[:3]!r}"
        )
    if broken := [path for path, histogram in found.items() if not histogram.is_finite]:
        raise ValueError(
            f"quantize: {broken[0]!r} gets NaN or infinity on the calibration batches; the model "
            "itself is broken before it is quantized"
        )
    return found
