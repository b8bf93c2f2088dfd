"""ZeRO over whole tensors: each rank keeps the optimizer's states of some parameters alone.

A tensor is never cut, so that a payload and its scale have one owner. The largest comes first, and
goes to the rank that has the least so far. Parameters of 100, 60, 50, 30 and 20 elements on three
ranks:

    rank 0    100               100
    rank 1    60, then 20        80
    rank 2    50, then 30        80

Source: arXiv 2310.18313 (FP8-LM), section 3.3; MS-AMP 0.4.0.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from unitscale.distributed.agreement import agree
from unitscale.distributed.guard import guard
from unitscale.distributed.ownership import PartitionReport, partition
from unitscale.formats import E4M3FN, E5M2, Codec, Encoded, FloatFormat, torch_dtype
from unitscale.formats.scale_rule import power_of_two_code, power_of_two_value

__all__ = ["PartitionedStates", "partition_states"]


PARTITIONED: WeakSet[torch.optim.Optimizer] = WeakSet()
"""Optimizers with hooks of `PartitionedStates`; a second pair would send all weights twice."""


NO_COPY = (
    "partition_states: an optimizer with partitioned states is not copied or pickled, or the copy "
    "would step without the other ranks; save gathered_state_dict(), load it into a new optimizer, "
    "and call partition_states on that"
)


class PartitionedStates:
    """The states of an optimizer, spread over ranks; `partition_states` makes it.

    Around each step of the optimizer: gradients of tensors that others own are put aside, so that
    the optimizer neither updates these nor makes states for them; then owners send their weights.

    Args:
        named: all parameters of the optimizer by name, in the order of its groups.
        format: of weights on the wire and on every rank; None sends them as they are.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        named: Mapping[str, Tensor],
        format: FloatFormat | None,
        group: Any,
    ) -> None:
        self.optimizer, self.group = optimizer, group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.names, self.parameters = list(named), list(named.values())
        self.owners = partition([p.numel() for p in self.parameters], self.ranks)
        self.codec = None
        if format is not None:
            self.codec = Codec(format=format, power_of_two="rceil")
        self.hidden: list[tuple[Tensor, Tensor]] = []
        self.exact: dict[Tensor, Tensor] = {}
        self.steps = self.bytes_sent = 0
        self.is_stepping = False
        optimizer.register_step_pre_hook(self.before_step)
        optimizer.register_step_post_hook(self.after_step)
        guard(optimizer, self.after_error, NO_COPY)
        optimizer.register_load_state_dict_post_hook(self.after_load)
        self.drop_foreign()
        if self.codec is not None:
            self.exchange()

    def __reduce__(self) -> Any:
        raise TypeError(NO_COPY)

    @property
    def loads(self) -> tuple[int, ...]:
        """Elements that each rank owns."""
        found = [0] * self.ranks
        for parameter, owner in zip(self.parameters, self.owners, strict=True):
            found[owner] += parameter.numel()
        return tuple(found)

    def owned_by(self, rank: int) -> list[Tensor]:
        """The parameters of a rank, in order."""
        pairs = zip(self.parameters, self.owners, strict=True)
        return [parameter for parameter, owner in pairs if owner == rank]

    def is_coded(self, parameter: Tensor) -> bool:
        """Whether a parameter travels in 8 bits; vectors, such as norms and biases, never do."""
        return self.codec is not None and parameter.dim() >= 2

    def report(self) -> PartitionReport:
        """What this rank owns and has sent so far."""
        return PartitionReport(
            rank=self.rank,
            loads=self.loads,
            parameters=len(self.owned_by(self.rank)),
            steps=self.steps,
            bytes_sent=self.bytes_sent,
        )

    def drop_foreign(self) -> None:
        """Forget states of tensors that others own."""
        for parameter, owner in zip(self.parameters, self.owners, strict=True):
            if owner != self.rank:
                self.optimizer.state.pop(parameter, None)

    def after_load(self, optimizer: torch.optim.Optimizer) -> None:
        """A hook: of a loaded state this rank keeps its own part."""
        known = [name for name, p in self.named_own() if p in optimizer.state]
        missing = [n for n, p in self.named_own() if p.requires_grad and p not in optimizer.state]
        if optimizer.state and missing:
            warnings.warn(
                f"partition_states: the state that was loaded has nothing of {len(missing)} of the "
                f"{len(known) + len(missing)} tensors of rank {self.rank}, such as {missing[0]!r}, "
                "which start anew; load the state of all ranks, as gathered_state_dict() gives it.",
                UserWarning,
                stacklevel=2,
            )
        self.drop_foreign()

    def named_own(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of this rank."""
        for name, parameter, owner in zip(self.names, self.parameters, self.owners, strict=True):
            if owner == self.rank:
                yield name, parameter

    @torch.no_grad()
    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """A hook: exact weights come back, and gradients that are not this rank's go aside.

        Raises:
            ValueError: a closure, which would compute them after that; other parameters than at
                the start.
        """
        if any(arg is not None for arg in (*args[1:], kwargs.get("closure"))):
            raise ValueError(
                "partition_states: step(closure); expected step() alone, after the backward pass."
            )
        now = [p for group in optimizer.param_groups for p in group["params"]]
        if len(now) != len(self.parameters) or any(
            a is not b for a, b in zip(now, self.parameters, strict=True)
        ):
            raise ValueError(
                "partition_states: the optimizer has other parameters than when its states were "
                "partitioned; add all groups first, then call partition_states once."
            )
        self.restore()
        self.hidden, self.is_stepping = [], True
        for parameter, owner in zip(self.parameters, self.owners, strict=True):
            if owner != self.rank and parameter.grad is not None:
                self.hidden.append((parameter, parameter.grad))
                parameter.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Put this rank's exact weights back; one that was changed since counts as it is."""
        for parameter, exact in self.exact.items():
            is_untouched = self.unpacked(self.packed(exact, True), exact, True) == parameter
            parameter.copy_(torch.where(is_untouched, exact, parameter))

    @torch.no_grad()
    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """A hook: gradients come back, and every rank gets the new weights."""
        self.give_back()
        self.steps += 1
        self.exchange()

    @torch.no_grad()
    def after_error(self) -> None:
        """A step has raised: gradients come back, and this rank's weights are rounded again.

        Nothing is exchanged, for other ranks may not have raised.
        """
        if not self.is_stepping:
            return
        self.give_back()
        for parameter in self.exact:
            self.exact[parameter] = parameter.clone()
            parameter.copy_(self.unpacked(self.packed(parameter, True), parameter, True))

    def give_back(self) -> None:
        """Put the gradients of tensors that others own back where they were."""
        for parameter, grad in self.hidden:
            parameter.grad = grad
        self.hidden, self.is_stepping = [], False

    @torch.no_grad()
    def exchange(self, *, exact: bool = False) -> None:
        """Each rank sends the weights that it owns, in bytes, one rank after the other.

        Args:
            exact: in the parameters' own dtypes, whatever the format.
        """
        for rank in range(self.ranks):
            owned = self.owned_by(rank)
            coded = [self.is_coded(p) and not exact for p in owned]
            sizes = [
                p.numel() + 1 if is_coded else p.numel() * p.element_size()
                for p, is_coded in zip(owned, coded, strict=True)
            ]
            if not sum(sizes):
                continue
            if rank == self.rank:
                pairs = zip(owned, coded, strict=True)
                message = torch.cat([self.packed(p, is_coded) for p, is_coded in pairs])
                self.bytes_sent += len(message) * (self.ranks > 1)
            else:
                message = torch.empty(sum(sizes), dtype=torch.uint8, device=owned[0].device)
            if self.ranks > 1:
                source = rank if self.group is None else dist.get_global_rank(self.group, rank)
                dist.broadcast(message, src=source, group=self.group)
            for parameter, is_coded, part in zip(
                owned, coded, torch.split(message, sizes), strict=True
            ):
                if is_coded and rank == self.rank:
                    self.exact[parameter] = parameter.clone()
                if is_coded or rank != self.rank:
                    parameter.copy_(self.unpacked(part, parameter, is_coded))

    def packed(self, parameter: Tensor, is_coded: bool) -> Tensor:
        """The bytes of a tensor; of a coded one the last is the exponent of its scale."""
        if not is_coded:
            return parameter.contiguous().flatten().view(torch.uint8)
        assert self.codec is not None
        encoded = self.codec.encode(parameter.detach())
        assert encoded.scale is not None
        code = power_of_two_code(encoded.scale.reshape(1))
        return torch.cat([encoded.data.contiguous().flatten().view(torch.uint8), code])

    def unpacked(self, message: Tensor, parameter: Tensor, is_coded: bool) -> Tensor:
        """The tensor of some bytes, in the dtype and shape of a parameter."""
        if not is_coded:
            return message.clone().view(parameter.dtype).view(parameter.shape)
        assert self.codec is not None
        stored = torch_dtype(self.codec.element)
        assert stored is not None
        data = message[:-1].view(stored).view(parameter.shape)
        scale = power_of_two_value(message[-1:]).reshape(())
        return self.codec.decode(Encoded(data, scale), parameter.dtype)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within it every rank has the exact weights, for a checkpoint. All ranks have to enter.

        Without 8-bit weights nothing is exchanged.
        """
        if self.codec is None:
            yield
            return
        self.restore()
        self.exchange(exact=True)
        try:
            yield
        finally:
            self.exchange()

    def gathered_state_dict(self, *, rank: int = 0) -> dict[str, Any] | None:
        """The optimizer's state_dict with the states of all ranks, on one of them; else None.

        All ranks have to call it. Any number of ranks can load it, and an optimizer that is not
        partitioned too.
        """
        local = self.optimizer.state_dict()
        found: list[Any] | None = [None] * self.ranks if rank == self.rank else None
        target = rank if self.group is None else dist.get_global_rank(self.group, rank)
        dist.gather_object(local["state"], found, dst=target, group=self.group)
        if found is None:
            return None
        merged = {index: state for part in found for index, state in part.items()}
        return {**local, "state": dict(sorted(merged.items()))}


def partition_states(
    optimizer: torch.optim.Optimizer,
    *,
    weights: FloatFormat | None = None,
    group: Any = None,
) -> PartitionedStates:
    """Spread the states of any optimizer over data-parallel ranks, whole tensors at a time (ZeRO).

    Gradients have to be the same on all ranks, as DistributedDataParallel makes them; schedulers,
    clipping, gradient scalers and `zero_grad` go on as they were. With `weights=None` the run is
    the run without it, to the bit, at about 1 / N of the states' bytes a rank, if the optimizer
    steps each parameter by itself: one that looks at all gradients together (a norm of them, say)
    sees those of its own rank alone. All ranks have to call it once, after the last group was
    added. The optimizer is not copied or pickled after that: this raises.

    Args:
        optimizer: torch's, `us.optim`'s with `states=`, or another that makes states for parameters
            with a gradient alone.
        weights: E4M3FN or E5M2 sends matrices in 8 bits with a power of two for each, at a quarter
            of float32's bytes. Every rank computes with the rounded weights, the owner too, which
            keeps the exact ones beside them (FP8-LM's O3).
    Raises:
        TypeError: it is no optimizer.
        ValueError: a parameter of FSDP2, of integers or on another device; another format; ranks
            differ; it was partitioned before. Every rank raises and nothing is changed.
    Source: arXiv 2310.18313 (FP8-LM), section 3.3.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"partition_states: optimizer is a {type(optimizer).__name__}; expected a "
            "torch.optim.Optimizer"
        )
    named = named_parameters(optimizer)
    fault = fault_of(named, weights)
    if optimizer in PARTITIONED:
        fault = "the states of this optimizer are partitioned already; call it once"
    rates = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    options = {
        "the optimizer": type(optimizer).__name__,
        "an option of the optimizer": str(rates),
        "weights": str(weights),
        "the version of torch": str(torch.__version__),
        "a parameter": ", ".join(f"{n} {tuple(p.shape)} {p.dtype}" for n, p in named.items()),
    }
    agree("partition_states", options, fault, group)
    PARTITIONED.add(optimizer)
    found = PartitionedStates(optimizer, named, weights, group)
    largest = max(range(len(named)), key=lambda i: found.parameters[i].numel())
    size, loads = found.parameters[largest].numel(), found.loads
    if found.rank == 0 and size * found.ranks > sum(loads) and found.ranks > 1:
        warnings.warn(
            f"partition_states: {found.names[largest]!r} has {size:,} of {sum(loads):,} elements, "
            f"more than one of {found.ranks} ranks should have, so the largest load is "
            f"{found.report().imbalance:.2f} of the mean; whole tensors balance on fewer ranks, or "
            "use FSDP2, which cuts them.",
            UserWarning,
            stacklevel=2,
        )
    return found


def named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters in the order of the groups; a number where one has no name."""
    found: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        names = group.get("param_names") or [None] * len(group["params"])
        for name, parameter in zip(names, group["params"], strict=True):
            found[str(len(found)) if name is None else name] = parameter
    return found


def fault_of(named: Mapping[str, Tensor], weights: object) -> str | None:
    """What is wrong on this rank."""
    if weights not in (None, E4M3FN, E5M2):
        return f"weights is {weights!r}; expected None, E4M3FN or E5M2"
    devices = {parameter.device for parameter in named.values()}
    if len(devices) > 1:
        return f"parameters are on {', '.join(sorted(map(str, devices)))}; expected one device"
    for name, parameter in named.items():
        if isinstance(parameter, DTensor):
            return f"{name!r} is a DTensor; FSDP2 partitions the states of its parameters itself"
        if weights is not None and parameter.dtype == torch.float64:
            return f"{name!r} is float64, beyond 8 bits at a float32 scale; leave weights out"
        if not parameter.is_floating_point():
            return f"{name!r} is {parameter.dtype}; expected floating point"
    return None
