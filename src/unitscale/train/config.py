"""The configuration of one run, and its learning-rate schedule. Imports no torch."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from unitscale.models import CharLMConfig
from unitscale.models.existing import BUILT_IN, is_existing
from unitscale.recipes import Recipe
from unitscale.train.named import find_recipe

# The best powers of two after `unitscale train --steps 300 --lr LR --recipe fp32` on Shakespeare's
# text, seed 0. Validation loss by log2 of the rate, standard (fp32): -9 1.965, -8 1.938, -7 1.948,
# -6 2.076. Unit-scaled, 700 steps of 8 windows, fp32-units: -0.5 1.856, 0 1.831, 1 1.853,
# with one rate for all kinds and equal shares of all branches.
STANDARD_LR = 2.0**-8
UNIT_SCALED_LR = 1.0

HEADS, WIDTH = 2, 128
"""Attention heads and width of `gpt2` and `llama` unless the options say otherwise."""

FOLLOWING = frozenset({"vocab_size", "context", "unit_scaled"})
"""Options of the model that are not free: tokens are bytes, and the rest decides the others."""


class Rule(NamedTuple):
    """What a value should be, in words and as a test."""

    expected: str
    is_met: Callable[[Any], bool]


LARGEST = 2**31 - 1
"""Of a count. What is beyond it is a slip of the keyboard, and would end in a failure of torch."""

LARGEST_OPTION = {"width": 2**20, "context": 2**20, "depth": 10_000}
"""Of some options of a built-in model. Others have `LARGEST`."""


def integer(low: int, high: int = LARGEST) -> Rule:
    """An integer from `low` to `high`, both included."""
    return Rule(
        f"an integer from {low} to {high}",
        lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        ),
    )


def number(expected: str, is_met: Callable[[float], bool]) -> Rule:
    """A finite number with a property."""
    return Rule(
        f"a number {expected}",
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max  # an int may be larger; NaN never is
            and is_met(value)
        ),
    )


FRACTION = number("from 0 to 1", lambda value: 0 <= value <= 1)
POSITIVE = number("above 0", lambda value: value > 0)
DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?")
BETA = number("from 0 up to, not including, 1", lambda value: 0 <= value < 1)

STATES = ("fp32", "fp8-lm", "coat", "bf16-stochastic", "master24")
"""Of `unitscale.optim`, which imports torch."""

OF_BF16 = ("bf16-stochastic", "master24")
"""Those that only parameters of BF16 can have."""

OPTIMIZERS = ("adamw", "sgd")

RULES = {
    "recipe": Rule("the name of a recipe", lambda value: isinstance(value, str)),
    "model": Rule(
        "options by name, as --set model.NAME=VALUE gives them",
        lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
    ),
    "device": Rule(
        "'cpu', 'cuda' or 'cuda:NUMBER'",
        lambda value: isinstance(value, str) and bool(DEVICE.fullmatch(value)),
    ),
    "dtype": Rule("'fp32' or 'bf16'", lambda value: value in ("fp32", "bf16")),
    "states": Rule(f"one of {', '.join(STATES)}", lambda value: value in STATES),
    "optimizer": Rule("'adamw' or 'sgd'", lambda value: value in OPTIMIZERS),
    "steps": integer(1),
    "batch_size": integer(1),
    "sequence_length": integer(1),
    "lr": POSITIVE,
    "warmup_fraction": FRACTION,
    "final_lr_fraction": FRACTION,
    "weight_decay": number("of at least 0", lambda value: value >= 0),
    "betas": Rule(
        "two numbers from 0 up to, not including, 1",
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(BETA.is_met, value)),
    ),
    "clip_norm": POSITIVE,
    "seed": integer(0, 2**64 - 1),
    "eval_windows": integer(1),
    "eval_every": integer(1),
    "record_every": integer(1),
    "checkpoint_every": integer(1),
    "inner": Rule(
        "'auto', 'eager' or 'inductor'", lambda value: value in ("auto", "eager", "inductor")
    ),
    "existing": Rule(
        f"{', '.join(BUILT_IN)} or MODULE:FACTORY (or FILE.py:FACTORY)",
        lambda value: isinstance(value, str) and is_existing(value),
    ),
    "remeasure": Rule(
        "'geometric', 'drift', 'once' or 'never'",
        lambda value: value in ("geometric", "drift", "once", "never"),
    ),
}
OPTIONAL = frozenset({"lr", "clip_norm", "eval_every", "record_every", "existing", "states"})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes: equal configurations give equal runs.

    Args:
        recipe: name of the recipe, or MODULE:NAME or FILE.py:NAME of one's own; it also decides
            between the standard and the unit-scaled model, or, for an existing model, whether it
            is given units.
        existing: an existing model, unchanged, instead of a `CharLM`: "gpt2" or "llama" of
            `transformers`, or MODULE:FACTORY.
        model: fields of `CharLMConfig`, apart from those that follow from this configuration
            (`FOLLOWING`); what is absent has its default. Of an existing model, the arguments of
            its factory.
        steps: number of optimizer steps.
        sequence_length: bytes of text in a window, its targets being one byte further on.
        lr: peak learning rate; None is the default of the recipe's parametrization (`peak_lr`).
        warmup_fraction: share of the steps over which the rate rises linearly from zero.
        final_lr_fraction: share of the peak where the cosine ends.
        clip_norm: largest norm of the gradient of all parameters; None leaves it as it is.
        eval_windows: number of fixed validation windows.
        eval_every: steps between validations; None validates after the last step only.
        record_every: steps between recordings of every tensor's statistics (numerics.jsonl, see
            `record.record`). None records nothing.
        checkpoint_every: steps between checkpoints; the last step always writes one.
        inner: the compiler that runs the rewritten graph, "eager" or "inductor"; "auto" is
            inductor on a GPU and eager on a CPU.
        remeasure: when the units of an existing model are measured, see `units.unit_scale`.
        device: where the model and its batches are, "cpu", "cuda" or "cuda:1".
        dtype: what the model is held in, and with it its optimizer's state: "fp32" or "bf16".
        states: how the optimizer holds its moments and master weights, a name of `optim.AdamW`;
            None is torch's own AdamW.
        optimizer: "adamw" or "sgd", whose momentum is the first of `betas`.

    Raises:
        ValueError, TypeError: a value out of its range, an unknown recipe or model option.
    """

    recipe: str = "fp8"
    existing: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1000
    batch_size: int = 16
    sequence_length: int = 128
    lr: float | None = None
    warmup_fraction: float = 0.05
    final_lr_fraction: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float | None = None
    seed: int = 0
    eval_windows: int = 256
    eval_every: int | None = None
    record_every: int | None = None
    checkpoint_every: int = 500
    inner: str = "auto"
    remeasure: str = "geometric"
    device: str = "cpu"
    dtype: str = "fp32"
    states: str | None = None
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not (rule.is_met(value) or (value is None and name in OPTIONAL)):
                raise ValueError(f"{name} is {value!r}; expected {rule.expected}")
        if self.states in OF_BF16 and self.dtype != "bf16":
            raise ValueError(
                f"states is {self.states!r}, which hold parameters of bf16 only, and dtype is "
                f"{self.dtype!r}; use --dtype bf16, or other states"
            )
        if self.optimizer == "sgd" and self.lr is None:
            raise ValueError(
                "lr is None and optimizer is 'sgd', for which no rate is known; give --lr"
            )
        if self.existing is None or self.existing in BUILT_IN:
            self.check_sizes()
        if self.existing is None:
            self.model_config  # noqa: B018 - checks the recipe and every option of the model
        else:
            self.numerics  # noqa: B018 - checks the recipe
        if self.numerics.throughout is not None:
            self.check_throughout()

    def check_throughout(self) -> None:
        """Raise ValueError for what one format for every tensor does not go with.

        It is rounded in eager code. An existing model may compute the statistics of its norms by
        operations of their own, which have to stay in FP32.
        """
        for name, legal, remedy in (
            ("existing", (None,), "take --model attention, conv or rnn"),
            ("inner", ("auto", "eager"), "take --inner auto or eager"),
            ("dtype", ("fp32",), "take --dtype fp32: the values are those of the format"),
            ("states", (None,), "leave --states out: the recipe says how they are held"),
            ("record_every", (None,), "leave record_every out, or record another recipe"),
        ):
            value = getattr(self, name)
            if value not in legal:
                raise ValueError(
                    f"{name} is {value!r}, and recipe {self.recipe_name!r} rounds every tensor of "
                    f"a character model in eager FP32 code; {remedy}"
                )

    def check_sizes(self) -> None:
        """Raise ValueError for a size of a model of ours that no machine could hold.

        `CharLMConfig` checks the rest of its own options; those of `transformers` check none.
        """
        for name, value in self.model.items():
            high = LARGEST_OPTION.get(name, LARGEST)
            if isinstance(value, int) and not isinstance(value, bool) and value > high:
                raise ValueError(f"{name} is {value}; expected at most {high}")
            rule = integer(1, high)
            if self.existing is not None and not rule.is_met(value):
                raise ValueError(f"{name} is {value!r}; expected {rule.expected}")
        if self.existing is not None:
            # Rotary positions turn pairs of elements of a head.
            unit = self.model.get("heads", HEADS) * (2 if self.existing == "llama" else 1)
            if self.model.get("width", WIDTH) % unit:
                raise ValueError(
                    f"width is {self.model.get('width', WIDTH)}; expected a multiple of {unit}, "
                    f"for {self.model.get('heads', HEADS)} heads of {self.existing}"
                )

    @property
    def peak_lr(self) -> float:
        """`lr`, or the default of the recipe's parametrization."""
        if self.lr is not None:
            return self.lr
        return UNIT_SCALED_LR if self.is_written_unit_scaled else STANDARD_LR

    @property
    def is_written_unit_scaled(self) -> bool:
        """Whether the model is in the unit-scaled parametrization, with its own learning rates."""
        return self.existing is None and self.numerics.unit_scaled

    @property
    def gives_units(self) -> bool:
        """Whether the recipe gives units to an existing model, which keeps its function."""
        return self.existing is not None and self.numerics.unit_scaled

    @property
    def model_name(self) -> str:
        """What is trained, in a word: a sequence layer, or an existing model."""
        return self.existing or self.model_config.layer

    @property
    def model_options(self) -> dict[str, Any]:
        """Every option of the model that the recipe does not decide."""
        if self.existing is None:
            return {k: v for k, v in asdict(self.model_config).items() if k != "unit_scaled"}
        context = {"context": self.sequence_length} if self.existing in BUILT_IN else {}
        return context | dict(self.model)

    @property
    def model_config(self) -> CharLMConfig:
        """The configuration of a `CharLM`, in the parametrization that the recipe asks for.

        Raises:
            ValueError, TypeError: an unknown recipe, an unknown option, or a value out of range.
        """
        known = {f.name for f in fields(CharLMConfig)} - FOLLOWING
        if unknown := sorted(set(self.model) - known):
            raise ValueError(
                f"the model has no option {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )
        return CharLMConfig(
            **self.model, context=self.sequence_length, unit_scaled=self.numerics.unit_scaled
        )

    @property
    def numerics(self) -> Recipe:
        """The recipe itself."""
        return find_recipe(self.recipe)

    @property
    def recipe_name(self) -> str:
        """The recipe's own name: `recipe` may say where a person's own one is."""
        return self.numerics.name

    def lr_at(self, step: int) -> float:
        """Learning rate of the step with this number, counted from 0: warm-up, then a cosine."""
        warmup = round(self.steps * self.warmup_fraction)
        if step < warmup:
            return self.peak_lr * (step + 1) / warmup
        progress = (step - warmup) / max(self.steps - warmup, 1)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.peak_lr * (self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it: lists for tuples.

        `states` and `optimizer` are left out where they have their defaults, so that the runs of
        versions that had none are known by the same description.
        """
        found = asdict(self) | {"model": dict(self.model), "betas": list(self.betas)}
        for name, default in (("states", None), ("optimizer", "adamw")):
            if found[name] == default:
                del found[name]
        return found

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`.

        Raises:
            ValueError: a name that is no field.
        """
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"TrainConfig has no {unknown[0]!r}; it has {', '.join(names)}")
        values = dict(values)
        if isinstance(values.get("betas"), list):
            values["betas"] = tuple(values["betas"])
        return cls(**values)
