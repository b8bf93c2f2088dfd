"""Statistics of every tensor of a training run, at every n-th step.

While `record` is active, each sampled training step of the model runs its captured graph node by
node, in full precision and in the order of the plain model, and digests each value, and each
gradient when it comes. All other calls go to the model as it was: eager, compiled or unit-scaled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from unitscale.formats import E4M3FN, E5M2, FloatFormat
from unitscale.graph.capture import TensorNode, drop_idle_calls, tensor_nodes
from unitscale.graph.example import storage_id
from unitscale.graph.interpret import ObservingInterpreter, on_gradient
from unitscale.graph.place import Places, argument_names, parameter_slots
from unitscale.numerics.digest import SAMPLE, Digest, digest, read
from unitscale.record.sink import Row, Sink

SESSION = "unitscale_session"
"""Attribute of a scaled model: an object with `units`, a map of tensor names to (s, phi)."""

MOMENTS = ("exp_avg", "exp_avg_sq")


@contextmanager
def record(
    model: nn.Module,
    formats: Sequence[FloatFormat] = (E4M3FN, E5M2),
    *,
    every: int = 50,
    path: str | Path | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    first_step: int = 0,
    limit: int = 200_000,
    sample: int = SAMPLE,
) -> Iterator["Recorder"]:
    """Record every tensor of `model`, forward and backward, on every `every`-th training call.

    A training call is one with gradients enabled; it counts as a step. A sampled one computes the
    plain model: bit-equal to it in eager mode, and without the rounding of a recipe. The recorder
    has the rows in `rows`, and those of the last sampled step in `latest`.

    A row has step, name, op, direction ("value", "gradient" or "state"), the statistics of
    `digest`, `held_log2` and `drift`, the RMS over the first one that was recorded. Shares and
    SQNR of a format are those of the tensor as it is held: times 2**held_log2, its unit. A model
    of `unit_scale` is first sampled once its units are measured.

    Args:
        formats: what the values are judged in (the first) and the gradients (the last).
        path: a file to stream to; only the last step is then kept in memory. JSONL: a row a line
            after a line with the formats, readable at any moment; rows from `first_step` on are
            replaced. A name that ends in .parquet: a row group a step, readable once the recording
            ends; it cannot be continued, and needs pyarrow.
        optimizer: record Adam's two moments of each parameter as well.
        first_step: number of the first call, for a run that is resumed.
        limit: rows to keep in memory without a path; the oldest are dropped, with a warning.
        sample: elements of a tensor to look at, see `digest`.
    Raises:
        ValueError: `every` below 1, no formats, a second recording of the same model, or a Parquet
            file without pyarrow or to be continued.
    """
    if every < 1:
        raise ValueError(f"record: every is {every}; expected at least 1")
    if not formats:
        raise ValueError("record: formats is empty; name at least one, such as (E4M3FN, E5M2)")
    if isinstance(model._compiled_call_impl, Recorder):
        raise ValueError(f"record: this {type(model).__name__} is being recorded already")
    sink = Sink(None if path is None else Path(path), formats, every, first_step, limit)
    recorder = Recorder(model, tuple(formats), every, sink)
    recorder.optimizer, recorder.step, recorder.sample = optimizer, first_step, sample
    original = model.__dict__.get("_compiled_call_impl")
    # In the instance's dict: a module compiled by torch.compile passes other attributes on.
    model.__dict__["_compiled_call_impl"] = recorder
    try:
        yield recorder
    finally:
        model.__dict__["_compiled_call_impl"] = original
        recorder.collect()
        recorder.sink.close()


class Recorder:
    """Stands in for a model's call while it is recorded."""

    def __init__(
        self, model: nn.Module, formats: tuple[FloatFormat, ...], every: int, sink: Sink
    ) -> None:
        self.model, self.formats, self.every, self.sink = model, formats, every, sink
        self.original = model.__dict__.get("_compiled_call_impl") or model._call_impl
        plain = getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
        self.sampled_call = torch.compile(plain._call_impl, backend=self.capture)
        self.optimizer: torch.optim.Optimizer | None = None
        self.step, self.sample = 0, SAMPLE
        self.is_late = False
        self.places, self.arguments = Places(plain), argument_names(plain)
        self.signatures: dict[tuple[str, ...], int] = {}
        self.pending: dict[tuple[str, str, str], Digest] = {}
        self.pending_step: int | None = None
        self.handles: list[Any] = []
        self.first_rms = sink.first_rms
        self.latest: list[Row] = []

    @property
    def rows(self) -> list[Row]:
        """All rows that are kept in memory: without a path those of the whole recording."""
        return list(self.sink.rows)

    @property
    def session(self) -> Any:
        """What a scaled model remembers of its units; None for any other model."""
        return self.model.__dict__.get(SESSION)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model."""
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        self.collect()
        step = self.step
        self.step += 1
        if not (step % self.every == 0 or self.is_late):
            return self.original(*args, **kwargs)
        self.is_late = self.awaits_units()
        if self.is_late:
            return self.original(*args, **kwargs)
        self.pending_step = step
        return self.sampled_call(*args, **kwargs)

    def awaits_units(self) -> bool:
        """Whether the model is to be held at units that are not measured yet."""
        if self.session is None or not self.session.scale or self.session.remeasure == "never":
            return False
        self.session.collect()
        return not self.session.units

    def capture(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """The torch.compile backend of sampled steps: run a graph node by node and watch."""
        if self.session:
            self.session.prepare(module)
        else:
            drop_idle_calls(module.graph)
        tensors = tensor_nodes(module.graph, self.arguments)
        tensors = self.session.distinguish(tensors) if self.session else self.distinguish(tensors)
        slots = parameter_slots(module.graph)

        def run(*args: Any) -> Any:
            observe = partial(self.observe, self.places.prefix(slots, args) if slots else "")
            return ObservingInterpreter(module, tensors, observe).run(*args)

        return run

    def distinguish(self, tensors: dict[fx.Node, TensorNode]) -> dict[fx.Node, TensorNode]:
        """Give tensors outside of every submodule names that no other graph uses."""
        signature = tuple(tensor.name for tensor in tensors.values() if tensor.at_root)
        index = self.signatures.setdefault(signature, len(self.signatures))
        return {
            node: replace(tensor, name=f"graph{index}.{tensor.name}")
            if tensor.at_root and index
            else tensor
            for node, tensor in tensors.items()
        }

    def observe(self, prefix: str, tensor: TensorNode, value: Tensor) -> None:
        """Digest a value now, and its gradient when it comes."""
        tensor = replace(tensor, name=prefix + tensor.name)
        is_constant = not value.requires_grad and tensor.op != "parameter"
        if is_constant or is_reshaped(tensor):
            return
        unit = self.session.units.get(tensor.name) if self.session else None
        self.digest(tensor, "value", value, -unit.s if unit else 0)
        if value.requires_grad:
            # What keeps (1, 1) has its true gradient; only a product takes its value at a unit.
            held_log2 = unit.phi if unit and tensor.pinned is None else 0
            self.handles.append(
                on_gradient(value, lambda g: self.digest(tensor, "gradient", g, held_log2))
            )

    def digest(self, tensor: TensorNode, direction: str, x: Tensor, held_log2: int) -> None:
        """Take the statistics of one value or gradient."""
        self.pending[tensor.name, tensor.op, direction] = digest(
            x, self.formats, held_log2=held_log2, sample=self.sample
        )

    def request(self) -> None:
        """Sample the next training call, whatever its number."""
        self.is_late = True

    def collect(self) -> list[Row]:
        """Write the rows of the last sampled step and return them; none if that is done.

        Call it after the backward pass to have the rows at once: else the next training call does.
        """
        if self.pending_step is None:
            return []
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.optimizer is not None:
            self.digest_moments(self.optimizer)
        rows = read(list(self.pending.values()))
        self.latest = [
            self.row(*key, found.held_log2, row)
            for (key, found), row in zip(self.pending.items(), rows, strict=True)
        ]
        self.pending.clear()
        self.pending_step = None
        self.sink.write(self.latest)
        return self.latest

    def digest_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the statistics of Adam's moments."""
        for name, parameter in self.model.named_parameters():
            for moment in MOMENTS:
                x = optimizer.state.get(parameter, {}).get(moment)
                if isinstance(x, Tensor) and x.is_floating_point() and x.itemsize > 1:
                    found = digest(x, self.formats, sample=self.sample)
                    self.pending[f"{name}:{moment}", "moment", "state"] = found

    def row(self, name: str, op: str, direction: str, held_log2: int, found: Row) -> Row:
        """One row: what it is of, its statistics, and its drift."""
        row = {
            "step": self.pending_step,
            "name": name,
            "op": op,
            "direction": direction,
            "held_log2": held_log2,
            **found,
        }
        rms = row["rms"]
        if rms:
            self.first_rms.setdefault((name, direction), rms)
        first = self.first_rms.get((name, direction))
        row["drift"] = float(f"{rms / first:.4g}") if rms and first else None
        return row


def is_reshaped(tensor: TensorNode) -> bool:
    """Whether a tensor is another one in another shape or order, so that its statistics are too."""
    if tensor.pinned is not None:  # written to in place, perhaps
        return False
    value = tensor.node.meta["example_value"]
    bases = (node.meta.get("example_value") for node in tensor.node.all_input_nodes)
    return any(
        isinstance(base, Tensor)
        and base.numel() == value.numel()
        and storage_id(base) == storage_id(value) != 0
        for base in bases
    )
