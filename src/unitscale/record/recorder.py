"""Statistics of every tensor of a training run, at every n-th step.

While `record` is active, each sampled training step of the model runs its captured graph node by
node, in the numerics and the order of the model as it is (its recipe, if it is scaled), and digests
each value, and each gradient when it comes. All other calls go to the model as it was: eager,
compiled or unit-scaled.
"""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from unitscale.formats import FloatFormat
from unitscale.graph.capture import TensorNode
from unitscale.graph.engine import modes_set_aside
from unitscale.numerics.digest import SAMPLE, Digest, digest, read
from unitscale.recipes import Operand, Recipe, parse
from unitscale.record.sink import Row, Sink
from unitscale.record.taken import (
    constant_log2,
    formats_of,
    is_reshaped,
    operand_of,
    true_value,
)
from unitscale.record.terms import asked_of_model, complaints, recipes_of
from unitscale.record.what_if import ProductReader, WhatIf
from unitscale.report.parquet import SUFFIX
from unitscale.units.forward import ScaledForward, forward_of
from unitscale.units.session import Session

MOMENTS = ("exp_avg", "exp_avg_sq")


@contextmanager
def record(
    model: nn.Module,
    formats: Sequence[FloatFormat] | None = None,
    *,
    every: int = 50,
    path: str | Path | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    first_step: int = 0,
    limit: int = 200_000,
    sample: int = SAMPLE,
    what_if: str | Sequence[str | Recipe] = (),
) -> Iterator["Recorder"]:
    """Record every tensor of `model`, forward and backward, on every `every`-th training call.

    A training call is one with gradients enabled. Calls before one backward pass are one step (of
    a contrastive loss, say); the tensors of a second call have "@2" after their name. A sampled
    step computes what the model computes: bit-equal to it in eager mode, and with the rounding of
    its recipe if it has one. The recorder has the rows in `rows`, those of `what_if` among them,
    and those of the last sampled step in `latest`. With a path, `rows` reads the file.

    A row has step, name, op, direction ("value", "gradient" or "state"), the statistics of
    `digest`, `held_log2`, `operand` (whether a product that the recipe rounds takes it; of a
    model without one, any product), `rounded_as` (the operand's text, of one that the recipe
    rounds) and `drift`, the RMS over the first one recorded. Shares and SQNR of a format are those
    of the tensor as it is held: times 2**held_log2, its unit or its constant. A scale that is
    computed from the tensor, as `current`, `delayed` and blocks have it, is not in them: what is
    lost under it is said by `what_if=` with the recipe of the model.

    Args:
        formats: what the values are judged in (the first) and the gradients (the last); unless
            given the formats of the model's recipe, or E4M3FN and E5M2 of a model without one.
        path: a file to stream to; only the last step is then kept in memory. JSONL: a row a line
            after a line with the formats, readable at any moment; rows from `first_step` on are
            replaced. A name that ends in .parquet: a row group a step, readable once the recording
            ends; it cannot be continued, and needs pyarrow.
        optimizer: record Adam's two moments of each parameter as well.
        first_step: number of the first call, for a run that is resumed.
        limit: rows to keep in memory without a path; the oldest are dropped, with a warning.
        sample: elements of a tensor to look at, see `digest`.
        what_if: other recipes by name, or "all": what each would make of the products of the steps
            that are sampled, in rows of their own (`record.what_if`). They cost time.
    Raises:
        ValueError: `every` below 1, no formats, a second recording of the same model, an unknown
            recipe or one that names modules that the model has not, or a Parquet file without
            pyarrow, to be continued, or for `what_if`.
    """
    if every < 1:
        raise ValueError(f"record: every is {every}; expected at least 1")
    if formats is not None and not formats:
        raise ValueError("record: formats is empty; name at least one, such as (E4M3FN, E5M2)")
    if isinstance(model._compiled_call_impl, Recorder):
        raise ValueError(f"record: this {type(model).__name__} is being recorded already")
    plain = getattr(model, "_orig_mod", model)
    others = [asked_of_model(r, plain) for r in recipes_of(what_if)] if what_if else []
    if others and path is not None and Path(path).suffix == SUFFIX:
        raise ValueError(
            f"record: {path} is a Parquet file, which has no place for what_if; use a file that "
            "ends in .jsonl"
        )
    known = forward_of(plain)
    recipe = parse("fp32") if known is None else known.session.recipe
    formats = formats_of(recipe) if formats is None else tuple(formats)
    sink = Sink(None if path is None else Path(path), formats, every, first_step, limit, recipe)
    recorder = Recorder(model, formats, every, sink)
    recorder.what_if = WhatIf(others, sink.header["formats"]) if others else None
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
    """Stands in for a model's call while it is recorded.

    A scaled model is watched in its own session. For any other one, each sampled call is captured
    by a session that rounds nothing, so that what is not captured is said in the same way.
    """

    def __init__(
        self, model: nn.Module, formats: tuple[FloatFormat, ...], every: int, sink: Sink
    ) -> None:
        self.model, self.formats, self.every, self.sink = model, formats, every, sink
        self.original = model.__dict__.get("_compiled_call_impl")
        self.plain = getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
        self.forward = forward_of(self.plain) or forward_that_rounds_nothing(self.plain)
        self.session, self.is_own = self.forward.session, forward_of(self.plain) is None
        self.optimizer: torch.optim.Optimizer | None = None
        self.step, self.sample = 0, SAMPLE
        self.is_late, self.has_warned, self.has_complained = False, False, False
        self.current: Sampled | None = None
        self.waiting: list[Sampled] = []
        self.outputs: list[weakref.ref[Tensor]] = []
        self.operands: dict[tuple[str, str], Operand] = {}
        self.first_rms = sink.first_rms
        self.latest: list[Row] = []
        self.what_if: WhatIf | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows: from memory, or with a path from its JSONL file, which is read anew.

        Raises:
            ValueError: they are in a Parquet file.
        """
        return self.sink.all_rows()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model."""
        if not torch.is_grad_enabled():
            return self.call(args, kwargs)
        is_more = any(ref() is not None for ref in self.outputs)
        if not is_more:  # else it belongs to the step of the last call: one backward for both
            self.collect()
            is_due = self.step % self.every == 0 or self.is_late
            self.is_late = False
            self.current = Sampled(self.step) if is_due else None
            self.step += 1
        if self.current is None:
            result = self.call(args, kwargs)
        else:
            self.current.calls += 1
            result = self.sampled_call(self.current, args, kwargs)
        self.await_backward(result)
        return result

    def call(self, args: Any, kwargs: Any) -> Any:
        """The model as it was."""
        run = self.original or self.model._call_impl
        return run(*args, **kwargs)

    def sampled_call(self, sampled: "Sampled", args: Any, kwargs: Any) -> Any:
        """The model in its session, each tensor shown."""
        if sampled not in self.waiting:
            self.waiting.append(sampled)
        current = forward_of(self.plain)
        if current is not self.forward and (current or not self.is_own):
            # The model was scaled, or given back, since the recording began.
            self.is_own = current is None
            self.forward = current or forward_that_rounds_nothing(self.plain)
            self.session = self.forward.session
        terms = self.session.terms
        sampled.returned = False
        before, terms.observer = terms.observer, partial(Reading, self, sampled, sampled.calls)
        try:
            if current is not None:
                result = self.call(args, kwargs)
            else:
                with self.forward.standing_in():
                    result = self.plain._call_impl(*args, **kwargs)
            sampled.returned = True
            return result
        finally:
            terms.observer = before

    def await_backward(self, result: Any) -> None:
        """Note which results a backward pass is still to come from."""
        found = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.requires_grad]
        self.outputs = [ref for ref in self.outputs if ref() is not None]
        for x in found:
            ref = weakref.ref(x)
            self.outputs.append(ref)
            x.register_hook(partial(self.arrive, ref))

    def arrive(self, ref: "weakref.ref[Tensor]", grad: Tensor) -> None:
        """A backward pass has come to a result: the next call begins a new step."""
        self.outputs = []

    def request(self) -> None:
        """Sample the next training call, whatever its number."""
        self.is_late = True

    def collect(self) -> list[Row]:
        """Write the rows of the last sampled step and return them; none if that is done.

        Call it after the backward pass to have the rows at once: else the next training call does.
        """
        done, self.waiting, self.current = self.waiting, [], None
        self.outputs = []
        found: list[Row] = []
        for sampled in done:
            if self.optimizer is not None:
                self.digest_moments(self.optimizer, sampled)
            rows = read(list(sampled.digests.values()))
            found += [
                self.row(sampled.step, *key, digest.held_log2, row)
                for (key, digest), row in zip(sampled.digests.items(), rows, strict=True)
            ]
            sampled.digests = {}
        if done:
            self.latest = found
            self.sink.write(found)
            if self.what_if is not None and done[-1].returned:
                self.write_what_if(self.what_if, done[-1].step)
        if done and done[-1].returned and not found and not self.has_warned:
            self.has_warned = True
            warnings.warn(
                f"record: no tensor of this {type(self.plain).__name__} was seen at step "
                f"{done[-1].step}: torch.compile captured nothing of it.",
                stacklevel=3,
            )
        return found

    def write_what_if(self, what_if: WhatIf, step: int) -> None:
        """Write the rows of other recipes, and warn once of those that have nothing to say."""
        rows = what_if.collect()
        self.sink.write(rows)
        names = [recipe.name for recipe in what_if.recipes]
        if not self.has_complained:
            self.has_complained = True
            for text in complaints(rows, names, type(self.plain).__name__, step):
                warnings.warn(f"record: {text}", stacklevel=4)

    def digest_moments(self, optimizer: torch.optim.Optimizer, sampled: "Sampled") -> None:
        """Take the statistics of Adam's moments."""
        for name, parameter in self.model.named_parameters():
            for moment in MOMENTS:
                x = optimizer.state.get(parameter, {}).get(moment)
                if isinstance(x, Tensor) and x.is_floating_point() and x.itemsize > 1:
                    found = digest(x, self.formats, sample=self.sample)
                    sampled.digests[f"{name}:{moment}", "moment", "state"] = found

    def row(self, step: int, name: str, op: str, direction: str, held_log2: int, found: Row) -> Row:
        """One row: what it is of, its statistics, and its drift."""
        operand = self.operands.get((name, direction))
        row = {
            "step": step,
            "name": name,
            "op": op,
            "direction": direction,
            "held_log2": held_log2,
            "operand": operand is not None,
            **({"rounded_as": str(operand)} if operand is not None and operand.rounds else {}),
            **found,
        }
        rms = row["rms"]
        if rms:
            self.first_rms.setdefault((name, direction), rms)
        first = self.first_rms.get((name, direction))
        row["drift"] = float(f"{rms / first:.4g}") if rms and first else None
        return row


@dataclass(eq=False)
class Sampled:
    """One sampled step: its number, how often the model was called, and what was seen.

    The last call has `returned`, unless the model raised.
    """

    step: int
    calls: int = 0
    returned: bool = True
    digests: dict[tuple[str, str, str], Digest] = field(default_factory=dict)


class Reading:
    """Reads the tensors of one call of a graph (a `units.observe.Reader`).

    Args:
        call: which call of the model within its step; tensors of a second one have "@2".
        prefix: what the names of the graph's tensors lack.
    """

    def __init__(self, recorder: Recorder, sampled: Sampled, call: int, prefix: str) -> None:
        self.recorder, self.sampled = recorder, sampled
        self.prefix, self.suffix = prefix, "" if call == 1 else f"@{call}"
        self.products: ProductReader | None = None
        if recorder.what_if is not None:
            self.products = ProductReader(recorder.what_if, sampled.step, prefix, self.suffix)

    def read(self, tensor: TensorNode, held: Tensor, log2: int, operand_log2: int | None) -> None:
        """Digest a value, which is `held * 2**log2`."""
        is_constant = not held.requires_grad and tensor.op != "parameter"
        if not is_constant and not is_reshaped(tensor):
            at = log2 if operand_log2 is None else operand_log2
            self.digest(tensor, "value", true_value(held, log2), -at)
        if self.products is not None:
            self.products.read(tensor, held, log2, operand_log2)

    def read_call(self, args: Any, kwargs: Any) -> None:
        """Take the arguments of the op that was run last."""
        if self.products is not None:
            self.products.read_call(args, kwargs)

    def read_gradient(self, tensor: TensorNode, carried: Tensor, log2: int) -> None:
        """Digest a gradient, which is carried as `2**log2` times the true one."""
        if not is_reshaped(tensor):
            self.digest(tensor, "gradient", true_value(carried, -log2), log2)
        if self.products is not None:
            self.products.read_gradient(tensor, carried, log2)

    def digest(self, tensor: TensorNode, direction: str, x: Tensor, held_log2: int) -> None:
        """Take the statistics of one value or gradient."""
        key = (self.prefix + tensor.name + self.suffix, tensor.op, direction)
        recipe = self.recorder.session.recipe
        operand = operand_of(tensor.node, direction, recipe, self.prefix)
        if operand is not None and (operand.rounds or not recipe.rounds):
            self.recorder.operands[key[0], direction] = operand
        with torch.no_grad(), modes_set_aside():
            self.sampled.digests[key] = digest(
                x.detach(),
                self.recorder.formats,
                held_log2=held_log2 + constant_log2(operand),
                sample=self.recorder.sample,
            )


def forward_that_rounds_nothing(model: nn.Module) -> ScaledForward:
    """A plain model's forward under a session that only captures."""
    session = Session(parse("fp32"), scale=False, remeasure="never", model=model)
    session.lacking = "recording: nothing is seen of"
    return ScaledForward(model, session, model.__dict__.get("forward"))
