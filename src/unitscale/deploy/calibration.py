"""Batches that a model is run on: what they must be, and what its layers see of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.deploy.histogram import Histogram

__all__ = [
    "Batch",
    "arguments",
    "call",
    "check_reached",
    "checked",
    "eager",
    "first_line",
    "is_out_of_memory",
    "seen",
    "taking",
    "tensors_in",
]

OUT_OF_MEMORY = ("alloc_cpu.cpp", "can't allocate memory", "Storage size calculation overflowed")
"""What torch's RuntimeError says where a CPU has too little memory; a GPU's has its own class."""

Batch = Any
"""What a model is called on: a tensor, a tuple of arguments, or a mapping of keyword arguments."""


def checked(batches: Iterable[Batch] | None) -> list[Batch]:
    """The batches, read once.

    Raises:
        TypeError: they are no iterable of batches. ValueError: there is none, or one holds NaN.
            Infinity is legal: masks hold it. `seen` refuses it where it comes into a layer.
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
            if x.is_floating_point() and bool(torch.isnan(x).any()):
                raise ValueError(
                    f"quantize: calibration batch {number} holds NaN in {name}; remove it"
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
    with taking(batch, f"quantize: calibration batch {number}"):
        return model(*args, **kwargs)


@contextmanager
def taking(batch: Batch, name: str) -> Iterator[None]:
    """A context in which what a model raises of a batch is one line, that names the batch.

    Too little memory is no fault of the batch, and stays as it is.

    Raises:
        ValueError: the model does not take it; says the shapes and what it raised.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(f"{key} {tuple(x.shape)}" for key, x in tensors_in(batch))
        raise ValueError(
            f"{name} ({shapes or type(batch).__name__}) does not fit the model, which raised "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in a line: some are pages."""
    return (str(error).strip().splitlines() or [""])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, on the CPU or on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in OUT_OF_MEMORY)
    )


def seen(
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Mapping[str, nn.Module],
    progress: Callable[[str, int, int], None],
) -> dict[str, Histogram]:
    """The magnitudes that come into each layer over all batches.

    Raises:
        ValueError: a batch does not fit; a layer got NaN or infinity, in which batch.
    """
    found = {path: Histogram() for path in layers}
    broken: dict[str, int] = {}
    current = 0

    def hook(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            histogram = found[path]
            histogram.add(args[0] if args else next(iter(kwargs.values())))
            if not histogram.is_finite:
                broken.setdefault(path, current)

        return note

    handles = [
        layer.register_forward_pre_hook(hook(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        with eager(model):
            for current, batch in enumerate(batches):
                call(model, batch, current)
                progress("calibrate", current + 1, len(batches))
    finally:
        for handle in handles:
            handle.remove()
    for path, number in broken.items():
        raise ValueError(
            f"quantize: {path!r} gets NaN or infinity on calibration batch {number}; the batch or "
            "the model itself is broken before it is quantized"
        )
    return found


def check_reached(histograms: Mapping[str, Histogram]) -> None:
    """Refuse layers whose scales nothing was seen for: any scale from it would make them dead.

    Raises:
        ValueError: a layer never ran, or only on empty tensors; or only zeros came into it.
    """
    for what, paths in (
        ("never ran", [path for path, seen in histograms.items() if not seen.counts.any()]),
        ("got zeros alone", [path for path, seen in histograms.items() if not seen.amax]),
    ):
        if paths:
            raise ValueError(
                f"quantize: {paths[0]!r} and {len(paths) - 1} other layers {what} on the "
                "calibration batches; add some that reach them, or keep them in full precision: "
                f"skip={paths[:3]!r}"
            )
