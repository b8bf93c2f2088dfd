"""Loading a state_dict: of the same states as it is, of others by way of float32.

torch casts every state but `step` to the dtype of its parameter, which would make codes of eight
bits float32 and scales BF16. So the states are taken out before torch sees them.
"""

import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unitscale.formats import FP16
from unitscale.formats.kernel import Bits

from .arithmetic import amax_of
from .held import MOMENTS, Held, Place
from .moments import MomentCodec, TensorScaled
from .parts import Part, Piece, exchange, local, part_of, read
from .states import FLOAT32, STATES, VERSION
from .weights import Corrected, Master, Own, Split, Stochastic

if TYPE_CHECKING:
    from .coded import Coded, Use

OWN = ("states", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay")
"""Of a group, what stays this optimizer's."""

Saved = dict[str, Any]
NO_BITS = Bits()


def load(optimizer: "Coded", state_dict: Saved, load_groups: Callable[[Saved], None]) -> None:
    """Load as `Coded.load_state_dict` says; `load_groups` is torch's own, hooks and all."""
    loaded: dict[Tensor, dict[str, Tensor]] = {}

    def take(_: Any, given: Saved) -> Saved:
        groups = merged(optimizer, given["param_groups"])
        loaded.update(converted(optimizer, given, groups))
        return {**given, "state": {}, "param_groups": groups}

    def put(_: Any) -> None:
        optimizer.state.update(loaded)

    # The last hook before, so that it sees what the user's made; the first one after.
    before = optimizer.register_load_state_dict_pre_hook(take)
    after = optimizer.register_load_state_dict_post_hook(put, prepend=True)
    try:
        load_groups(state_dict)
    finally:
        before.remove()
        after.remove()


def merged(optimizer: "Coded", saved: list[Saved]) -> list[Saved]:
    """The saved groups, with what stays this optimizer's."""
    own = optimizer.param_groups
    sizes = [len(group["params"]) for group in own]
    found = [len(group["params"]) for group in saved]
    if sizes != found:
        raise ValueError(
            f"{optimizer.kind}.load_state_dict: the groups hold {found} parameters; expected "
            f"{sizes}; load the state of an optimizer with the same groups."
        )
    for group in saved:
        name, version = group.get("states"), group.get("states_version", VERSION)
        is_known = name is None or (isinstance(name, str) and name in STATES)
        if not is_known or not isinstance(version, int) or version > VERSION:
            raise ValueError(
                f"{optimizer.kind}.load_state_dict: the states are {name!r}, version {version}; "
                f"expected one of {', '.join(STATES)} up to version {VERSION}; "
                "a later unitscale reads them."
            )
        if group.get("amsgrad"):
            raise ValueError(
                f"{optimizer.kind}.load_state_dict: a group has amsgrad=True, which optimizers "
                "with states= do not have; leave states out to go on with it."
            )
        check_values(optimizer.kind, group)
    kept = [{k: v for k, v in group.items() if k in OWN} for group in own]
    rest = [{k: v for k, v in group.items() if k != "params"} for group in own]
    return [
        {**missing, **group, **stays, "states_version": VERSION}
        for missing, group, stays in zip(rest, saved, kept, strict=True)
    ]


def check_values(kind: str, group: Saved) -> None:
    """Raise ValueError for a setting of a saved group that no step can be made with."""
    for name in ("lr", "weight_decay", "eps", "momentum", "dampening"):
        if name in group and not is_number(group[name]):
            raise wrong_value(kind, name, group[name], "a finite number of at least 0")
    betas = group.get("betas", (0.0, 0.0))
    is_pair = isinstance(betas, list | tuple) and len(betas) == 2
    if not is_pair or not all(is_number(beta) and float(beta) < 1 for beta in betas):
        raise wrong_value(kind, "betas", betas, "two numbers from 0 up to, not including, 1")
    seed = group.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise wrong_value(kind, "seed", seed, "an int from 0 to 2**63 - 1")


def wrong_value(kind: str, name: str, value: Any, expected: str) -> ValueError:
    """The error for a setting of a saved group."""
    return ValueError(
        f"{kind}.load_state_dict: {name} of a group is {value!r}; expected {expected}; load what "
        "state_dict() gave."
    )


def is_number(value: Any) -> bool:
    """Whether a value, or the one in a tensor, is finite and not below zero."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and 0 <= value < math.inf


def converted(
    optimizer: "Coded", given: Saved, groups: list[Saved]
) -> dict[Tensor, dict[str, Tensor]]:
    """A new state for each parameter that has one."""
    names = list(chain.from_iterable(group["params"] for group in given["param_groups"]))
    saved_as = [group.get("states") for group in given["param_groups"] for _ in group["params"]]
    new_groups = [group for group in groups for _ in group["params"]]
    if strange := [key for key in given["state"] if key not in set(names)]:
        raise ValueError(
            f"{optimizer.kind}.load_state_dict: the state of {strange[0]!r} fits no parameter; the "
            f"groups have {names[:3]}{'...' if len(names) > 3 else ''} (JSON makes text of "
            "numbers: keep states with torch.save)"
        )
    states: dict[Tensor, dict[str, Tensor]] = {}
    for use, key, saved_states, group in zip(
        optimizer.uses(), names, saved_as, new_groups, strict=True
    ):
        saved = {k: v for k, v in given["state"].get(key, {}).items() if v is not None}
        if not saved:
            continue
        use = use._replace(group=group)
        one = One(optimizer, use, saved)
        states[use.parameter] = one.same() if saved_states == use.group["states"] else one.other()
    return states


class One:
    """The saved state of one parameter, and what becomes of it."""

    def __init__(self, optimizer: "Coded", use: "Use", saved: Mapping[str, Any]) -> None:
        self.optimizer, self.use, self.saved = optimizer, use, saved
        self.held: Held = optimizer.held_of(use)
        self.part: Part = part_of(use.parameter)
        self.weight = local(use.parameter)
        self.everything = Piece(slice(0, self.part.rows), slice(0, self.part.width), 0)

    def wrong(self, what: str, remedy: str) -> ValueError:
        """The one line that the user sees."""
        where = f"{self.optimizer.kind}.load_state_dict: parameter {self.use.name!r}"
        return ValueError(f"{where}: {what}; {remedy}.")

    def same(self) -> dict[str, Tensor]:
        """The state as it was saved, when the codecs are the same."""
        places = {place.name: place for place in self.held.places()}
        if set(self.saved) != {"step", *places}:
            return self.other()  # of a parameter in another dtype
        state = {"step": self.step()}
        for name, place in places.items():
            field = place.field
            value = self.field(place)
            if value.dtype != field.dtype:
                raise self.wrong(
                    f"{name} is {value.dtype}, but was saved as {field.dtype}",
                    "something cast the states on the way",
                )
            copy = value.to(self.weight.device, copy=True).contiguous()
            state[name] = self.part.place(copy, field.layout, place.block)
        return state

    def other(self) -> dict[str, Tensor]:
        """The state decoded from what it was saved as, and encoded."""
        used: set[str] = {"step"}
        moments = [self.moment(name, used) for name, _ in self.held.moments]
        master = self.master(used)
        # The buffer of a momentum that is zero by now is nothing wrong.
        if unknown := set(self.saved) - used - set(MOMENTS[self.optimizer.kind.lower()]):
            raise self.wrong(
                f"the state holds {', '.join(sorted(unknown))}, which these states do not",
                f"expected that of {self.optimizer.kind}",
            )
        state = self.held.zeros(self.part, self.weight.device)
        state["step"].copy_(self.step())
        for (name, codec), moment in zip(self.held.moments, moments, strict=True):
            self.put(state, name, codec, codec.encode(moment, self.amax(codec, moment)))
        self.keep(state, master)
        return state

    def step(self) -> Tensor:
        """The number of steps done; torch's SGD counts none, but has a momentum after the first."""
        found = self.saved.get("step", 1.0 if self.optimizer.kind == "SGD" else None)
        if found is None:
            raise self.wrong("the state has no step", "load that of an Adam or AdamW")
        if not is_number(found):
            raise self.wrong(f"step is {found!r}", "expected a finite number of at least 0")
        return torch.tensor(float(found), dtype=torch.float32)

    def moment(self, name: str, used: set[str]) -> Tensor:
        """A moment in float32, from whatever fields there are."""
        position = MOMENTS[self.optimizer.kind.lower()].index(name)
        for entry in STATES.values():
            codec = (entry.first, entry.second)[position]
            if codec != FLOAT32 and self.has(name, codec):
                return codec.decode(self.fields(name, codec, used))
        if name not in self.saved:
            raise self.wrong(
                f"the state has no {name} but {', '.join(sorted(self.saved))}",
                f"expected that of {self.optimizer.kind}",
            )
        if not self.saved[name].is_floating_point():
            raise self.wrong(
                f"{name} is {self.saved[name].dtype} without the fields that decode it",
                "load the whole state",
            )
        return self.fields(name, FLOAT32, used)[0].float()

    def has(self, slot: str, codec: MomentCodec) -> bool:
        """Whether the fields of a codec are there, in its dtypes."""
        found = [(self.saved.get(slot + field.suffix), field.dtype) for field in codec.fields]
        return all(isinstance(value, Tensor) and value.dtype == dtype for value, dtype in found)

    def master(self, used: set[str]) -> Tensor | None:
        """The weight in more bits than the parameter has; None if nothing more was saved."""
        scaled = TensorScaled(format=FP16)
        if self.has("master", scaled):
            return scaled.decode(self.fields("master", scaled, used))
        if "master" in self.saved:
            return self.fields("master", FLOAT32, used)[0].float()
        for codec in (Split(), Corrected()):
            if codec.slot in self.saved:
                stored = self.fields(codec.slot, codec, used)
                if self.weight.dtype != torch.bfloat16:
                    return None  # what it corrects is not what the parameter holds
                return codec.read(self.rows(self.weight, 1), stored)
        return None

    def keep(self, state: dict[str, Tensor], master: Tensor | None) -> None:
        """What the weight's codec keeps, as far as the parameter is what the master says."""
        codec, dtype = self.held.weight, self.weight.dtype
        if isinstance(codec, Own | Stochastic):
            return
        weight = self.rows(self.weight, 1)
        plain = weight.float()
        x = plain if master is None else master
        amax = self.amax(codec, plain)
        written = codec.write(x, dtype, amax, NO_BITS)
        # Codecs differ in what they show of a tie, so next to it; else somebody changed the weight.
        for instead in (torch.nextafter(x, plain), plain):
            x = torch.where(written.weight == weight, x, instead)
            written = codec.write(x, dtype, amax, NO_BITS)
        if isinstance(codec, Master):
            self.put(state, codec.slot, codec.codec, written.stored)
            return
        fits = written.weight == weight
        self.put(state, codec.slot, codec, [torch.where(fits, f, 0) for f in written.stored])

    def put(self, state: dict[str, Tensor], slot: str, codec: Any, stored: Any) -> None:
        """Fill the fields of a new state."""
        for field, value in zip(codec.fields, stored, strict=True):
            target = local(state[slot + field.suffix])
            target.copy_(value.reshape(target.shape))

    def amax(self, codec: Any, x: Tensor) -> Tensor | None:
        """What a scale of the whole tensor needs, from all processes."""
        if not codec.is_whole:
            return None
        amax = amax_of(x)
        if self.part.group is not None:
            exchange([(self.part.group, amax)])
        return amax

    def fields(self, slot: str, codec: Any, used: set[str]) -> list[Tensor]:
        """The fields of a slot as rows."""
        found = []
        for field in codec.fields:
            place = Place(slot + field.suffix, field, codec.block)
            used.add(place.name)
            value = self.field(place).to(self.weight.device)
            if field.layout != "tensor":
                value = self.rows(value, codec.block if field.layout == "block" else 1)
            found.append(value)
        return found

    def rows(self, tensor: Tensor, block: int) -> Tensor:
        """A local tensor as rows; an empty one too."""
        if not tensor.numel():
            return tensor.reshape(0, -(-self.part.width // block))
        return read(tensor.contiguous(), self.everything, self.part.width, block)

    def field(self, place: Place) -> Tensor:
        """The rows of a saved tensor that are here, after checking its shape."""
        value = self.saved[place.name]
        if not isinstance(value, Tensor):
            raise self.wrong(
                f"{place.name} is a {type(value).__name__}",
                "expected a tensor, as state_dict() gives",
            )
        expected = self.part.global_shape(place.field.layout, place.block)
        if tuple(value.shape) != tuple(expected):
            raise self.wrong(
                f"{place.name} has shape {tuple(value.shape)}; expected {tuple(expected)}",
                "load the state of this model's parameters",
            )
        return self.part.take(value.detach(), place.field.layout)
