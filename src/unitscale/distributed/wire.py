"""The gradients of one model on the wire: what a DDP hook keeps, counts, saves and reports."""

import hashlib
import math
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unitscale.distributed.agreement import agree, short
from unitscale.distributed.collective import (
    finite_amaxes,
    gather,
    largest,
    ring_bytes,
    scatter_mean,
)
from unitscale.distributed.payload import Layout, Lost, Seed, decode, encode
from unitscale.distributed.scale import AutomaticScale, GradientScale, UnitScale
from unitscale.distributed.scale_state import Found, ScaleState
from unitscale.distributed.watch import NO_COPY
from unitscale.formats import FloatFormat

__all__ = ["GradientWire", "WireReport"]

VERSION = 1
"""Of `GradientWire.state_dict`."""


@dataclass(frozen=True, kw_only=True)
class WireReport:
    """What a hook has done so far.

    bytes_sent: by this rank, counted from the tensors given to the collectives.
    bf16_ring_bytes: what a ring all-reduce of the same gradients in BF16 sends.
    scale_exchanges: calls in which some scale followed from an exchanged amax.
    saturated: elements beyond the largest value of the format, on all ranks.
    flushed: of this rank's, elements other than zero that were sent as zero.
    nonfinite: of this rank's, NaN and infinities, which are sent as NaN.
    """

    passes: int
    calls: int
    ranks: int
    elements: int
    bytes_sent: int
    bf16_ring_bytes: int
    scale_exchanges: int
    saturated: int
    flushed: int
    nonfinite: int

    def __str__(self) -> str:
        if not self.calls:
            return "no gradient was exchanged in 8 bits: the hook has not been called"
        share = self.bytes_sent / self.bf16_ring_bytes if self.bf16_ring_bytes else 0.0
        return (
            f"{self.passes} backward passes, {self.calls} buckets on {self.ranks} ranks: "
            f"{self.bytes_sent:,} bytes sent ({share:.1%} of a BF16 ring), "
            f"{self.scale_exchanges} exchanges of amaxes, {self.saturated:,} elements saturated, "
            f"{self.flushed / max(1, self.elements):.2%} flushed to zero, "
            f"{self.nonfinite:,} not finite"
        )


class GradientWire:
    """The state of the hook that `fp8_hook` registers; every rank has one.

    On a CPU a thread of its own exchanges the buckets one after another, in a process group of its
    own, while the backward pass goes on; on a GPU a stream of its own does. Either takes buckets in
    their order, so that all ranks make the same collectives in the same order.
    """

    def __init__(
        self,
        *,
        format: FloatFormat,
        mean_format: FloatFormat,
        scale: GradientScale,
        rounding: str,
        seed: int,
        group: Any,
        rank: int,
        ranks: int,
        names: dict[Tensor, str],
    ) -> None:
        self.format, self.mean_format, self.scale = format, mean_format, scale
        self.rounding, self.seed = rounding, seed
        self.group, self.rank, self.ranks, self.names = group, rank, ranks, names
        self.state = ScaleState(scale, format, ranks)
        self.begun = 0
        """Backward passes whose first bucket was taken; `state.passes` follows in its thread."""
        self.calls = self.elements = self.bytes_sent = self.ring = self.scale_exchanges = 0
        self.saturated = self.warned = 0
        self.unchecked: list[tuple[int, Tensor]] = []
        """Of exchanges not looked at yet: the pass, and the digest of each rank's scales."""
        self.lost: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unitscale-gradients")
        self.streams: dict[torch.device, Any] = {}

    def __repr__(self) -> str:
        return f"GradientWire({self.format}, {self.scale}, {self.rounding}): {self.report()}"

    def __reduce__(self) -> Any:
        raise TypeError(NO_COPY)

    def take(
        self, index: int, buffer: Tensor, parameters: Sequence[Tensor], *, is_last: bool
    ) -> torch.futures.Future[Tensor]:
        """Exchange a bucket in the background; the future holds `buffer`, then the mean.

        Raises:
            TypeError: the gradient is sparse, or of no dtype that can be rounded.
        """
        if buffer.layout != torch.strided:
            raise TypeError(
                f"fp8_hook: a gradient is {buffer.layout}; expected a dense one. Build its "
                "embedding with sparse=False"
            )
        if index == 0:
            self.begun += 1
        names = [self.names[parameter] for parameter in parameters]
        numels = [parameter.numel() for parameter in parameters]
        run = partial(self.exchange, index, buffer, names, numels, is_last=is_last)
        if buffer.device.type == "cuda":
            return self.on_stream(run, buffer)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        # DDP takes the exception of a future for its tensor; one raised in `then` it raises itself.
        opened: torch.futures.Future[Tensor] = future.then(lambda done: done.wait())
        self.worker.submit(finish, run, buffer, future)
        return opened

    def on_stream(self, run: Any, buffer: Tensor) -> torch.futures.Future[Tensor]:
        """Launch an exchange on a stream beside that of the backward pass."""
        device = buffer.device
        if device not in self.streams:
            self.streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self.streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[device])
        with torch.cuda.stream(stream):
            finish(run, buffer, future)
        return future

    @torch.no_grad()
    def exchange(
        self,
        index: int,
        buffer: Tensor,
        names: Sequence[str],
        numels: Sequence[int],
        *,
        is_last: bool,
    ) -> None:
        """Replace the gradients of a bucket by their mean over ranks."""
        if index == 0:
            self.check()
            self.settle(self.state.begin())
        layout = Layout(tuple(numels), self.ranks)
        wants = self.state.wants(names)
        amax, sent = None, 0
        if any(wants):
            amax = finite_amaxes(buffer, numels)
            sent += largest(amax, layout, self.group)
        inverse = self.state.inv_scales(names, wants, amax, buffer.device)
        payload, lost = encode(buffer, layout, inverse, self.format, self.seeds(index, "out"))
        shard, more = scatter_mean(
            payload, layout, self.format, self.mean_format, self.group, self.seeds(index, "mean")
        )
        payload, trailers, last = gather(shard, self.trailer(names, lost), layout, self.group)
        decode(payload, layout, 1 / inverse, self.mean_format, buffer)
        sent += more + last
        log2 = None
        if amax is not None and isinstance(self.scale, UnitScale | AutomaticScale):
            log2 = self.state.measure(buffer, numels, wants, amax)
            # The same mean may have another RMS in the last bit on another kind of machine.
            sent += largest(log2, layout, self.group)
        self.count(lost, layout, sent, was_measured=any(wants))
        self.state.pending.append(Found(names, numels, log2, trailers[:, 1:]))
        self.unchecked.append((self.state.passes - 1, trailers[:, 0]))
        if buffer.device.type == "cpu":  # elsewhere, looking would wait for the device
            self.check()
            if is_last:
                self.settle(self.state.settle())

    def trailer(self, names: Sequence[str], lost: Lost) -> Tensor:
        """What travels behind a shard: a digest of the scales, a request, what was lost."""
        state = self.state
        known = [(state.passes, state.log2.get(name), name in state.due) for name in names]
        digest = zlib.crc32(repr(known).encode()) & 0x7FFFFFFF
        head = torch.tensor([digest, state.requested], dtype=torch.int32)
        state.requested = False
        parts = [head.to(lost.saturated.device), lost.saturated]
        if isinstance(self.scale, AutomaticScale):
            parts.append(lost.largest)
        return torch.cat(parts)

    def check(self) -> None:
        """Refuse gradients that ranks cast at different scales."""
        unchecked, self.unchecked = self.unchecked, []
        for which, tensor in unchecked:
            digests = tensor.tolist()
            for rank, digest in enumerate(digests):
                if digest != digests[0]:
                    raise RuntimeError(
                        f"fp8_hook: ranks 0 and {rank} cast their gradients at different scales in "
                        f"pass {which}; load the same state_dict on every rank, and make the same "
                        "training calls on each"
                    )

    def seeds(self, index: int, leg: str) -> Seed | None:
        """The seeds of stochastic rounding, others for every rank, bucket and pass."""
        if self.rounding == "nearest":
            return None
        start = f"{self.seed}/{self.state.passes}/{index}/{self.rank}/{leg}/"

        def seed(piece: int) -> int:
            digest = hashlib.blake2b(f"{start}{piece}".encode(), digest_size=8).digest()
            return int.from_bytes(digest, "little") >> 2  # torch's int64 holds it

        return seed

    def count(self, lost: Lost, layout: Layout, sent: int, *, was_measured: bool) -> None:
        """Add one exchange to the report."""
        self.calls += 1
        self.elements += layout.total
        self.bytes_sent += sent
        self.ring += ring_bytes(2 * layout.total, self.ranks)
        self.scale_exchanges += was_measured
        device = lost.flushed.device
        zero = torch.zeros_like(lost.flushed)
        flushed, nonfinite = self.lost.get(device, (zero, zero))
        self.lost[device] = (flushed + lost.flushed, nonfinite + lost.nonfinite)

    def settle(self, saturated: dict[str, int]) -> None:
        """Count what saturated, and warn: the first time, and whenever the number has doubled.

        Not under an `AutomaticScale`, which lets some elements saturate by its rule.
        """
        self.saturated += sum(saturated.values())
        if isinstance(self.scale, AutomaticScale):
            return
        if saturated and self.rank == 0 and self.saturated >= 2 * self.warned:
            self.warned = self.saturated
            worst = sorted(saturated, key=lambda name: -saturated[name])
            shown = ", ".join(f"{name} ({saturated[name]})" for name in worst[:3])
            more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
            remedy = "they are measured again in the next pass"
            if not self.is_measuring:
                remedy = "lower target_log2, or pass scale=CurrentScale()"
            warnings.warn(
                f"fp8_hook: elements of gradients saturated in {self.format} in pass "
                f"{self.state.passes - 1}, on all ranks together: {shown}{more}; {remedy}. "
                "`report()` has the sum",
                stacklevel=2,
            )

    @property
    def is_measuring(self) -> bool:
        """Whether a parameter that saturated is given another scale."""
        return not isinstance(self.scale, UnitScale) or self.scale.remeasure not in ("never", ())

    def report(self) -> WireReport:
        """What was sent and lost so far, of all backward passes that have ended."""
        self.settle(self.state.settle())
        flushed, nonfinite = (
            sum(int(counts[which]) for counts in self.lost.values()) for which in range(2)
        )
        return WireReport(
            passes=self.begun,
            calls=self.calls,
            ranks=self.ranks,
            elements=self.elements,
            bytes_sent=self.bytes_sent,
            bf16_ring_bytes=self.ring,
            scale_exchanges=self.scale_exchanges,
            saturated=self.saturated,
            flushed=flushed,
            nonfinite=nonfinite,
        )

    def remeasure(self) -> None:
        """Measure all units in the pass after the next; one rank may ask alone.

        Raises:
            ValueError: the scale is not measured, or in every pass.
        """
        if not (isinstance(self.scale, UnitScale) and self.is_measuring):
            raise ValueError(
                f"GradientWire.remeasure: the scale is {self.scale}; expected a UnitScale that "
                "measures"
            )
        self.state.requested = True

    def state_dict(self) -> dict[str, Any]:
        """The scales, as plain numbers; the same on every rank."""
        self.settle(self.state.settle())
        return {
            "version": VERSION,
            "format": str(self.format),
            "scale": str(self.scale),
            "seed": self.seed,
            "passes": self.state.passes,
            "log2": dict(self.state.log2),
            "due": sorted(self.state.due),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with saved scales, on any number of ranks; every rank has to call it.

        Raises:
            ValueError: the state is of another version, format or scale, names a parameter that the
                model lacks, or differs between ranks. Every rank raises, and none has changed.
        """
        fault = self.fault_of(state_dict)
        agree("GradientWire.load_state_dict", {"state": repr(state_dict)}, fault, self.group)
        state = ScaleState(self.scale, self.format, self.ranks, passes=state_dict["passes"])
        state.log2, state.due = dict(state_dict["log2"]), set(state_dict["due"])
        self.state, self.seed = state, state_dict["seed"]

    def fault_of(self, state_dict: dict[str, Any]) -> str | None:
        """Why a state cannot be loaded."""
        mine = self.state_dict()
        if not isinstance(state_dict, dict) or state_dict.keys() != mine.keys():
            return "this is no state_dict of a GradientWire; expected what its state_dict() gave"
        for key in ("version", "format", "scale"):
            if state_dict[key] != mine[key]:
                return (
                    f"{key} is {state_dict[key]!r}; expected {mine[key]!r}. Register the hook with "
                    "the options of the saved run, or start without its state"
                )
        if fault := fault_of_values(state_dict):
            return fault
        unknown = sorted({*state_dict["log2"], *state_dict["due"]} - set(self.names.values()))
        if unknown:
            return f"there are scales of {unknown[0]!r}; the model has no such parameter"
        return None


def fault_of_values(state_dict: dict[str, Any]) -> str | None:
    """Which value of a state is none that a wire could have."""
    passes, seed, log2, due = (state_dict[key] for key in ("passes", "seed", "log2", "due"))
    if type(passes) is not int or passes < 0:
        return f"passes is {passes!r}; expected an int of at least 0"
    if type(seed) is not int:
        return f"seed is {seed!r}; expected an int"
    if not isinstance(log2, dict) or not all(isinstance(name, str) for name in log2):
        return f"log2 is a {type(log2).__name__}; expected a dict of parameters by name"
    for name, value in log2.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"log2 of {name!r} is {value!r}; expected a finite number"
    if not isinstance(due, list) or not all(isinstance(name, str) for name in due):
        return f"due is {short(repr(due))}; expected a list of names of parameters"
    return None


def finish(run: Any, buffer: Tensor, future: torch.futures.Future[Tensor]) -> None:
    """Run an exchange, and give its result or its exception to those who wait."""
    try:
        run()
    except Exception as error:
        future.set_exception(error)  # type: ignore[arg-type]
    else:
        future.set_result(buffer)
