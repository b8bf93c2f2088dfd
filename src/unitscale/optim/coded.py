"""Optimizers whose states are held by codecs, updated piece by piece.

Each class is torch's optimizer in all but `step` and `load_state_dict`: groups, hooks, schedulers,
closures, `zero_grad` and `state_dict` are inherited.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from unitscale.formats.hashing import key_numbers, keys_of
from unitscale.formats.kernel import Bits

from . import restore
from .arithmetic import Values, adam, amax_of, sgd
from .held import Held, cannot_hold, check_name, held
from .optimizers import SGD, Adam, AdamW
from .parts import Part, Piece, exchange, is_dtensor, local, part_of, read, write
from .state_row import StateRow, row_of
from .states import VERSION

PIECE = {"cpu": 2**17}
"""Elements in a piece. On a CPU all pieces of a step stay in the cache; elsewhere a kernel has to
be worth its launch."""
PIECE_ELSEWHERE = 2**22

MODES = ("amsgrad", "capturable", "differentiable", "fused")
"""Options of torch's that would change the step, or need a kernel of its own."""


class Use(NamedTuple):
    """A parameter at its place in the groups; `number` counts over all of them."""

    number: int
    name: str
    parameter: Tensor
    group: dict[str, Any]


@dataclass(kw_only=True)
class Job:
    """What a step does to one parameter."""

    use: Use
    held: Held
    part: Part
    weight: Tensor
    grad: Tensor | None
    state: dict[str, Tensor]
    amaxes: list[Tensor]
    """Of the new weight and moments, in order; of finite values."""
    waiting: dict[str, Tensor] = field(default_factory=dict)
    """New scales of whole tensors; until the last piece the old ones are read."""

    def stored(self, slot: str, codec: Any, piece: Piece) -> list[Tensor]:
        """The fields of a state, those of the piece."""
        found = []
        for one in codec.fields:
            tensor = local(self.state[slot + one.suffix])
            if one.layout != "tensor":
                block = codec.block if one.layout == "block" else 1
                tensor = read(tensor, piece, self.part.width, block)
            found.append(tensor)
        return found

    def store(self, slot: str, codec: Any, piece: Piece, values: Any) -> None:
        """Put fields of a piece back; those of the whole tensor wait, for others to be read."""
        for one, value in zip(codec.fields, values, strict=True):
            if one.layout == "tensor":
                self.waiting[slot + one.suffix] = value
            else:
                block = codec.block if one.layout == "block" else 1
                tensor = local(self.state[slot + one.suffix])
                write(tensor, piece, self.part.width, value, block)

    def pieces(self, size: int) -> Iterator[Piece]:
        """Of the rows that are here."""
        block = max([self.held.weight.block, *(c.block for _, c in self.held.moments)])
        assert self.grad is not None
        whole_rows = not (self.weight.is_contiguous() and self.grad.is_contiguous())
        return self.part.pieces(size, block, whole_rows=whole_rows)


class Coded(torch.optim.Optimizer):
    """What the three optimizers have in common; `states`, `seed` and `chunk_size` are its own."""

    kind: ClassVar[str]

    @staticmethod
    @abstractmethod
    def update(values: Values, grad: Tensor, group: dict[str, Any], step: float) -> None:
        """One step on float32 pieces, in place."""

    def __init__(
        self,
        model: Any,
        lr: float | Tensor,
        *,
        states: str,
        seed: int = 0,
        chunk_size: int | None = None,
        **options: Any,
    ) -> None:
        check_name(states, self.kind)
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"{self.kind}: seed is {seed!r}; expected an int from 0 to 2**63 - 1.")
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise ValueError(
                f"{self.kind}: chunk_size is {chunk_size!r}; expected an int of 1 or more, or None."
            )
        self.states, self.seed, self.chunk_size = states, seed, chunk_size
        super().__init__(model, lr, **options)  # type: ignore[arg-type]
        if states != "fp32" and not any(self.held_of(use).is_coded for use in self.uses()):
            warnings.warn(
                f"{self.kind}: states={states!r} changes nothing: no parameter has a state that is "
                "large enough, as state_rows() shows; leave states out.",
                UserWarning,
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("states", "seed", "chunk_size")}
        return {**super().__getstate__(), **own}

    def moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """torch's names of the moments that this group has."""
        return ("exp_avg", "exp_avg_sq")

    def uses(self) -> Iterator[Use]:
        """All parameters, in the order of the groups."""
        index = 0
        for group in self.param_groups:
            names = group.get("param_names")
            for position, parameter in enumerate(group["params"]):
                name = names[position] if names else str(index)
                yield Use(index, name, parameter, group)
                index += 1

    def held_of(self, use: Use) -> Held:
        """The codecs of a parameter."""
        found = held(
            use.group["states"],
            use.parameter.shape,
            use.parameter.dtype,
            self.moment_names(use.group),
        )
        if found is None:
            raise ValueError(
                f"{self.kind}: parameter {use.name!r}: "
                f"{cannot_hold(use.group['states'], use.parameter.dtype)}."
            )
        return found

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; a group may name `states` of its own.

        Raises:
            ValueError: states that there are not, or that cannot hold a parameter's dtype; an
                option of torch's that these optimizers do not have.
        """
        if isinstance(param_group, dict):
            param_group = self._checked(param_group)
        super().add_param_group(param_group)

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """A group with the settings of states, after all checks that torch does not do."""
        states = given.get("states", self.states)
        check_name(states, self.kind)
        self._refuse_modes({**self.defaults, **given, "states": states})
        params = given["params"]
        params = [params] if isinstance(params, Tensor) else params
        params = params if isinstance(params, set) else list(params)  # torch refuses a set
        group = {**given, "params": params, "states": states}
        group.setdefault("seed", self.seed)
        group["states_version"] = VERSION
        names = given.get("param_names")
        for position, entry in enumerate(params):
            own_name, parameter = entry if isinstance(entry, tuple) else (None, entry)
            if isinstance(parameter, Tensor):
                name = str(own_name or (names[position] if names else position))
                try:
                    part_of(parameter)
                except ValueError as error:
                    raise ValueError(f"{self.kind}: parameter {name!r}: {error}.") from None
                self.held_of(Use(position, name, parameter, {**self.defaults, **group}))
        return group

    def _refuse_modes(self, group: dict[str, Any]) -> None:
        for name in MODES:
            if group.get(name):
                raise ValueError(
                    f"{self.kind}: {name}=True with states={group['states']!r}, which has no such "
                    "step; leave it out, or leave states out."
                )

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, in pieces of `chunk_size` elements.

        Code that is compiled around it is left for it: pieces, counters and scales are numbers and
        memory that no graph holds. `fullgraph=True` refuses it, as torch says.

        Raises:
            ValueError: a gradient that is sparse, or distributed in another way than its parameter;
                a group that was given an option which these optimizers do not have.
        """
        for group in self.param_groups:
            self._refuse_modes(group)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = [use for use in self.uses() if self._is_due(use)]  # all checks, before any change
        jobs = [self._job(use) for use in due]
        shared = [job for job in jobs if job.held.is_whole and job.part.group is not None]
        for job in shared:
            self._survey(job)
        exchange((job.part.group, amax) for job in shared for amax in job.amaxes)
        for job in jobs:
            if job.grad is not None:
                self._apply(job)
        return loss

    def _is_due(self, use: Use) -> bool:
        """Whether a parameter takes part.

        One without a gradient does where others exchange a maximum, because every process must
        bring the same tensors.
        """
        if use.parameter.grad is not None:
            self._check_gradient(use)
            return True
        return is_dtensor(use.parameter) and self.held_of(use).is_whole

    def _check_gradient(self, use: Use) -> None:
        grad = use.parameter.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise ValueError(
                f"{self.kind}: the gradient of {use.name!r} is {grad.layout}; expected a dense one "
                "(of an embedding: sparse=False)."
            )
        if is_dtensor(grad) != is_dtensor(use.parameter) or (
            is_dtensor(grad) and grad.placements != use.parameter.placements  # type: ignore[attr-defined]
        ):
            raise ValueError(
                f"{self.kind}: the gradient of {use.name!r} is distributed in another way than the "
                "parameter; bring it to the parameter's placements."
            )

    def _job(self, use: Use) -> Job:
        how, part = self.held_of(use), part_of(use.parameter)
        device = local(use.parameter).device
        state = self.state[use.parameter] if use.parameter.grad is not None else {}
        if use.parameter.grad is not None and not how.is_in(state):
            # At the first step all; later what a change of momentum or of the dtype asks for.
            state.update({**how.zeros(part, device), **state})
        return Job(
            use=use,
            held=how,
            part=part,
            weight=local(use.parameter),
            grad=None if use.parameter.grad is None else local(use.parameter.grad),
            state=state,
            amaxes=[torch.zeros((), device=device) for _ in range(1 + len(how.moments))],
        )

    def _size(self, job: Job) -> int:
        return self.chunk_size or PIECE.get(job.weight.device.type, PIECE_ELSEWHERE)

    def _computed(self, job: Job, piece: Piece, *, in_place: bool) -> Values:
        """New values of a piece. In place, states in float32 are changed where they are."""
        width, how = job.part.width, job.held
        assert job.grad is not None
        weight = read(job.weight, piece, width)
        weight = how.weight.read(weight, job.stored(how.weight.slot, how.weight, piece))
        moments = [codec.decode(job.stored(name, codec, piece)) for name, codec in how.moments]
        if not in_place:
            weight, moments = weight.clone(), [moment.clone() for moment in moments]
        values = Values(weight, tuple(moments))
        grad = read(job.grad, piece, width).float()
        self.update(values, grad, job.use.group, float(job.state["step"]) + 1)
        return values

    def _survey(self, job: Job) -> None:
        """The amaxes of what the step will give, with nothing changed."""
        if job.grad is not None:
            for piece in job.pieces(self._size(job)):
                self._note(job, self._computed(job, piece, in_place=False))

    def _note(self, job: Job, values: Values) -> None:
        for amax, found in zip(job.amaxes, (values.weight, *values.moments), strict=True):
            torch.maximum(amax, amax_of(found), out=amax)

    def _apply(self, job: Job) -> None:
        pieces = list(job.pieces(self._size(job)))
        is_alone = job.held.is_whole and job.part.group is None
        if is_alone and len(pieces) > 1:
            self._survey(job)
        keys = self._keys(job)
        for piece in pieces:
            values = self._computed(job, piece, in_place=True)
            if is_alone and len(pieces) == 1:
                self._note(job, values)
            self._write(job, piece, values, Bits(keys, start=piece.start))
        self._write_scales(job)
        job.state["step"] += 1

    def _keys(self, job: Job) -> Tensor:
        """Of the random bits: other ones for each seed, parameter and step."""
        seed = job.use.group["seed"]
        for number in (job.use.number, int(job.state["step"])):
            low, high = key_numbers(seed)
            seed = (high << 32 | low & 0xFFFFFFFF) & (1 << 64) - 1 ^ number
        return keys_of(seed - (seed >> 63 << 64), job.weight.device)

    def _writes_weight(self, job: Job) -> bool:
        """At a rate of zero a weight stays; some codecs would round it."""
        return job.held.weight.is_exact or float(job.use.group["lr"]) != 0

    def _write(self, job: Job, piece: Piece, values: Values, bits: Bits) -> None:
        weight, width = job.held.weight, job.part.width
        if self._writes_weight(job):
            written = weight.write(values.weight, job.weight.dtype, job.amaxes[0], bits)
            write(job.weight, piece, width, written.weight)
            job.store(weight.slot, weight, piece, written.stored)
        for (name, codec), moment, amax in zip(
            job.held.moments, values.moments, job.amaxes[1:], strict=True
        ):
            job.store(name, codec, piece, codec.encode(moment, amax))

    def _write_scales(self, job: Job) -> None:
        """Scales of whole tensors, last; where no rows are, those that the others have."""
        if not job.waiting and job.held.is_whole:
            nothing = job.weight.new_zeros(0, job.part.width, dtype=torch.float32)
            values = Values(nothing, tuple(nothing for _ in job.held.moments))
            piece = Piece(slice(0, 0), slice(0, job.part.width), 0)
            self._write(job, piece, values, Bits())
        for name, scale in job.waiting.items():
            job.state[name].copy_(scale)

    def state_rows(self) -> list[StateRow]:
        """What each parameter got: a line for each, before the first step too."""
        return [row_of(use.name, use.parameter, self.held_of(use)) for use in self.uses()]

    def state_bytes(self) -> int:
        """Bytes of all states that this process holds now; none before the first step."""
        tensors = (value for state in self.state.values() for value in state.values())
        return sum(local(value).nbytes for value in tensors if isinstance(value, Tensor))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, from these states, from others and from torch's own optimizer.

        States of the same name are taken as they are, bit for bit; others are decoded and encoded.
        The states of this optimizer stay what they are, the rest of the groups is loaded, the seed
        included. Load the model first: some codecs hold what the parameter lacks.

        Raises:
            ValueError: other groups; a state that is missing, unknown or of another shape; states
                of a later version. Nothing is changed.
        """
        restore.load(self, state_dict, super().load_state_dict)


class CodedAdamW(Coded, AdamW):
    """`AdamW` with states in codecs."""

    update = staticmethod(adam)
    kind = "AdamW"


class CodedAdam(Coded, Adam):
    """`Adam` with states in codecs."""

    update = staticmethod(adam)
    kind = "Adam"


class CodedSGD(Coded, SGD):
    """`SGD` with its momentum in a codec."""

    update = staticmethod(sgd)
    kind = "SGD"

    def moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """None without momentum."""
        return ("momentum_buffer",) if group["momentum"] != 0 else ()
