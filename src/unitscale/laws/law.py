"""A fitted law: what it predicts, how sure that is, and what it was fitted to."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unitscale.laws.answer import Critical, ExtrapolationWarning, Prediction, quantiles
from unitscale.laws.budget import Surface
from unitscale.laws.damage import Damage
from unitscale.laws.form import (
    LEAST_FACTOR,
    Array,
    Design,
    Form,
    log_factor,
    log_loss,
)
from unitscale.laws.row import FULL, MOST_BITS, TOGETHER, Row
from unitscale.laws.scope import HeldOut, Scope

if TYPE_CHECKING:
    from unitscale.laws.advice import Plan

FAR = 10.0
"""Factor beyond the sizes and tokens of the rows from which on an answer comes with a warning."""

Bits = float | Mapping[str, float]
"""Bits of all tensors that a law has curves of, or of each by its name."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Law:
    """Loss over size, tokens and precision.

    Args:
        form: which parameters it has. values: they, in natural units.
        draws: the parameters of fits to resampled rows, as vectors of the form.
        damage: of rounding after training, if rows said something of it. damage_draws: likewise.
        residuals: `ln(loss) - ln(prediction)` of the rows.
        widths: bits that the products of a recipe cost, where its name says them.
        scope: what it was fitted to. held_out: how well it predicts a size that it had not seen.
        demo: why it is not to be used for runs of one's own; None of a law fitted to them.
        notes: what the fit left out, or could not tell.
    """

    form: Form
    values: Mapping[str, float]
    scope: Scope
    draws: tuple[tuple[float, ...], ...] = ()
    damage: Damage | None = None
    damage_draws: tuple[Damage, ...] = ()
    residuals: tuple[float, ...] = ()
    widths: Mapping[str, float] = field(default_factory=dict)
    held_out: HeldOut | None = None
    demo: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def vector(self) -> Array:
        """Its parameters as a fit has them."""
        return self.form.vector(dict(self.values))

    @property
    def recipes(self) -> tuple[str, ...]:
        """Every recipe that it knows, the reference first."""
        first = () if self.form.reference is None else (self.form.reference,)
        return first + self.form.recipes

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 90 % interval of a parameter, over the fits to resampled rows."""
        if not self.draws:
            return None
        found = [draw[self.form.at[name]] for draw in self.draws]
        low, high = quantiles(np.array(found))
        if self.form.is_logarithm(name):
            return math.exp(low), math.exp(high)
        return low, high

    def factor(self, *, recipe: str | None = None, bits: Bits | None = None) -> float:
        """The share of the parameters that count at a precision, N_eff / N.

        Raises:
            ValueError: a recipe or a tensor that it never saw; neither recipe nor bits, or both.
        """
        row = self.asked(1.0, 1.0, recipe, bits)
        return float(np.exp(log_factor(self.form, self.vector, Design.of([row], self.form))[0][0]))

    def factor_interval(
        self, *, recipe: str | None = None, bits: Bits | None = None
    ) -> tuple[float, float] | None:
        """The 90 % interval of `factor`.

        Raises:
            ValueError: as `factor`.
        """
        design = Design.of([self.asked(1.0, 1.0, recipe, bits)], self.form)
        if not self.draws:
            return None
        found = [log_factor(self.form, np.array(draw), design)[0][0] for draw in self.draws]
        low, high = quantiles(np.array(found))
        return math.exp(low), math.exp(high)

    def equivalent_bits(self, recipe: str, *, ruler: "Law | None" = None) -> float | None:
        """The bits of all of its tensors at which a law's curves give the factor of a recipe.

        None where no number of bits up to 64 does: the recipe is as good as no rounding.

        Args:
            ruler: the law with the curves; itself unless given.
        Raises:
            ValueError: a recipe that it never saw; no curves over bits.
        """
        measure = self if ruler is None else ruler
        if not measure.form.tensors:
            raise ValueError(
                f"equivalent bits of {recipe}: this law has no curve over bits, because no row has "
                "P_w, P_a or P_kv; pass ruler= a law that has"
            )
        wanted = self.factor(recipe=recipe)
        low, high = 0.0, float(MOST_BITS)
        if wanted >= measure.factor(bits=high):
            return None
        for _ in range(60):
            middle = (low + high) / 2
            is_below = measure.factor(bits=max(middle, 1e-9)) < wanted
            low, high = (middle, high) if is_below else (low, middle)
        return (low + high) / 2

    def surface(self, factor: float) -> Surface:
        """The loss over size and tokens where this share of the parameters counts."""
        alpha = self.values["alpha"]
        return Surface(
            a=self.values["A"] * factor**-alpha,
            b=self.values["B"],
            e=self.values["E"],
            alpha=alpha,
            beta=self.values.get("beta", alpha),
        )

    def predict(
        self,
        *,
        size: float,
        tokens: float,
        recipe: str | None = None,
        bits: Bits | None = None,
        post_bits: float | None = None,
    ) -> Prediction:
        """The loss of a run.

        Args:
            size: parameters without embedding tables. tokens: to train on.
            recipe, bits: one of the two; bits of all tensors with a curve, or of each by name.
            post_bits: of weights that are rounded after training.
        Warns:
            ExtrapolationWarning: a size or a number of tokens beyond 10 times those of the rows, or
                bits outside of theirs. The prediction's notes say the same.
        Raises:
            ValueError: a recipe, a tensor or a rounding after training that it never saw; a number
                that is not positive.
        """
        row = self.asked(size, tokens, recipe, bits)
        notes = self.beyond(row, post_bits)
        for note in notes:
            warnings.warn(note, ExtrapolationWarning, stacklevel=2)
        design = Design.of([row], self.form)
        factor = float(np.exp(log_factor(self.form, self.vector, design)[0][0]))
        loss = float(np.exp(log_loss(self.form, self.vector, design)[0][0]))
        damage = None
        if post_bits is not None:
            damage = self.damage_at(self.damage, row, factor, post_bits)
        low, high = self.bounds(row, design, post_bits)
        return Prediction(
            loss=loss + (damage or 0.0),
            low=low,
            high=high,
            factor=factor,
            damage=damage,
            notes=self.marks() + notes,
        )

    def bounds(
        self, row: Row, design: Design, post_bits: float | None
    ) -> tuple[float | None, float | None]:
        """The interval of a run's loss: over resampled fits, and over what rows differ from them.

        The residuals are widened by `sqrt(n / (n - parameters))`: the fit has bent towards them.
        """
        if not self.draws:
            return None, None
        logs = np.array([log_loss(self.form, np.array(d), design)[0][0] for d in self.draws])
        count, used = len(self.residuals), len(self.form.names)
        spread = np.array(self.residuals) * math.sqrt(count / max(count - used, 1))
        losses = np.exp(logs)[:, None] * np.exp(spread)[None, :]
        if post_bits is not None and self.damage_draws:
            added = [
                self.damage_at(
                    damage,
                    row,
                    float(np.exp(log_factor(self.form, np.array(draw), design)[0][0])),
                    post_bits,
                )
                for draw, damage in zip(self.draws, self.damage_draws, strict=True)
            ]
            losses = losses + np.array(added)[:, None]
        return quantiles(losses)

    def damage_at(self, damage: Damage | None, row: Row, factor: float, post_bits: float) -> float:
        """What rounding after training adds.

        Raises:
            ValueError: the law says nothing of it; bits that are not positive.
        """
        if damage is None:
            raise ValueError(
                "this law says nothing of rounding after training: no row has P_post and loss_ptq; "
                "fit it to rows that have"
            )
        if not 0 < post_bits <= MOST_BITS:
            raise ValueError(f"post_bits is {post_bits}; expected above 0, up to {MOST_BITS}")
        return damage.loss(
            log_size=math.log(row.size * factor),
            log_tokens=math.log(row.tokens),
            post_bits=post_bits,
            bits=row.bits,
        )

    def dcrit(self, *, size: float, post_bits: float) -> Critical:
        """The tokens past which more of them raise the loss of a model rounded after training.

        Args:
            size: parameters of the model, not rounded while training. post_bits: of its weights.
        Warns:
            ExtrapolationWarning: as `predict`.
        Raises:
            ValueError: the law says nothing of rounding after training; a number not above zero.
        """
        if not (1 <= size < math.inf):
            raise ValueError(f"size is {size!r}; expected a finite number from 1 on")
        row = Row(size=size, tokens=self.scope.tokens[1], loss=1.0)
        self.damage_at(self.damage, row, 1.0, post_bits)
        assert self.damage is not None
        notes = self.beyond(row, post_bits)
        found = [
            damage.critical_tokens(
                size=size,
                post_bits=post_bits,
                b=values["B"],
                beta=values.get("beta", values["alpha"]),
            )
            for values, damage in zip(
                [dict(self.values), *(self.form.values(np.array(d)) for d in self.draws)],
                [self.damage, *self.damage_draws],
                strict=False,
            )
        ]
        low, high = quantiles(np.array(found[1:])) if found[1:] else (None, None)
        beyond = found[0] / self.scope.tokens[1]
        if FAR < beyond < math.inf:
            notes += (f"that is {beyond:.3g} times the most tokens of its rows",)
        for note in notes:
            warnings.warn(note, ExtrapolationWarning, stacklevel=2)
        return Critical(tokens=found[0], low=low, high=high, notes=self.marks() + notes)

    def plan(
        self,
        *,
        flops: float,
        fix: Mapping[str, float | str] | None = None,
        hardware: Sequence[str] | None = None,
    ) -> "Plan":
        """The size, the tokens and the precision that reach the lowest loss for a budget.

        Args:
            flops: `6 N D * (bits / 16)`: operations, of which those of 16 bits count once.
            fix: what is given already: "N", "D", or "P", the name of a recipe or bits.
            hardware: what the machine multiplies: recipes, kinds of formats (fp8, bf16, int8), or
                bits. `NAME:BITS` says what it costs there; unless said, as many as its name has.
        Warns:
            ExtrapolationWarning: as `predict`.
        Raises:
            ValueError: a budget or a fixed value that is not positive, all three fixed; a format
                that the law never saw.
        """
        from unitscale.laws.advice import make_plan

        return make_plan(self, flops=flops, fix=dict(fix or {}), hardware=hardware)

    def save(self, path: "str | Path") -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        from unitscale.laws.file import save_law

        save_law(self, Path(path))

    def asked(self, size: float, tokens: float, recipe: str | None, bits: Bits | None) -> Row:
        """A run that a law is asked of, checked.

        Raises:
            ValueError: as `predict`.
        """
        for name, value in (("size", size), ("tokens", tokens)):
            if not (isinstance(value, int | float) and 1 <= value < math.inf):
                raise ValueError(f"{name} is {value!r}; expected a finite number from 1 on")
        if (recipe is None) == (bits is None):
            given = "both" if recipe is not None else "neither"
            raise ValueError(
                f"{given} of recipe and bits given; expected one of them, this law knows "
                f"{self.knows()}"
            )
        if recipe is not None:
            if recipe not in self.recipes:
                raise ValueError(f"this law never saw {recipe!r}; it knows {self.knows()}")
            return Row(size=size, tokens=tokens, loss=1.0, recipe=recipe)
        tensors = self.form.tensors
        if not tensors:
            raise ValueError(f"this law never saw bits; it knows {self.knows()}")
        assert bits is not None
        named = bits if isinstance(bits, Mapping) else dict.fromkeys(tensors, bits)
        members: dict[str, float] = {}
        for name, value in named.items():
            if name not in tensors:
                raise ValueError(
                    f"this law has no curve over the bits of {name!r} alone, its rows did not "
                    f"differ in them alone; it knows {self.knows()}"
                )
            if not 0 < value <= MOST_BITS and value != FULL:
                raise ValueError(f"bits of {name} are {value}; expected above 0, up to {MOST_BITS}")
            members |= dict.fromkeys(name.split(TOGETHER), value)
        return Row(size=size, tokens=tokens, loss=1.0, bits=members)

    def knows(self) -> str:
        """The precisions that it was fitted to, in words."""
        curves = [
            f"{low:g} to {high:g} bits of {name}" for name, (low, high) in self.scope.bits.items()
        ]
        return ", ".join([*self.recipes, *curves])

    def beyond(self, row: Row, post_bits: float | None = None) -> tuple[str, ...]:
        """In what a question lies far beyond the rows, a sentence each."""
        notes = []
        for name, value, (low, high) in (
            ("size", row.size, self.scope.sizes),
            ("tokens", row.tokens, self.scope.tokens),
        ):
            if not low / FAR <= value <= high * FAR:
                notes.append(
                    f"{name} {value:.3g} is more than {FAR:g} times beyond the rows, which have "
                    f"{low:.3g} to {high:.3g}"
                )
        asked = [
            (f"bits of {name}", row.bits.get(name.partition(TOGETHER)[0], FULL), known)
            for name, known in self.scope.bits.items()
        ]
        if post_bits and self.scope.post_bits is not None:
            asked.append(("bits after training", post_bits, self.scope.post_bits))
        for name, bits, known in asked:
            if bits != FULL and not known[0] <= bits <= known[1]:
                notes.append(
                    f"{bits:g} {name} are outside of the rows, which have {known[0]:g} to "
                    f"{known[1]:g}"
                )
        own = log_factor(self.form, self.vector, Design.of([row], self.form))[0][0]
        if row.bits and (found := float(np.exp(own))) <= 10 * LEAST_FACTOR:
            notes.append(f"so few bits leave {found:.1g} of the parameters: expect it not to train")
        return tuple(notes)

    def marks(self) -> tuple[str, ...]:
        """What stands beside every answer: that it is a demo, and what the fit could not tell."""
        return (*(() if self.demo is None else (self.demo,)), *self.notes)

    def __str__(self) -> str:
        from unitscale.laws.text import law_text

        return law_text(self)

    __repr__ = __str__
