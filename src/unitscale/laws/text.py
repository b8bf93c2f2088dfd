"""Laws and plans as text for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unitscale.laws.answer import LEVEL, interval_text, span_text
from unitscale.laws.budget import FLAT

if TYPE_CHECKING:
    from unitscale.laws.advice import Plan
    from unitscale.laws.law import Law


def law_text(law: "Law") -> str:
    """The formula, its parameters with intervals, each precision's factor, and the notes."""
    lines = [] if law.demo is None else [law.demo]
    scope = law.scope
    lines += [
        "L = A N_eff^-alpha + B D^-beta + E" + (" with beta = alpha" if law.form.tied else ""),
        f"{scope.rows} runs, {scope.n_sizes} sizes of {scope.sizes[0]:.3g} to "
        f"{scope.sizes[1]:.3g} parameters, {scope.n_tokens} numbers of tokens from "
        f"{scope.tokens[0]:.3g} to {scope.tokens[1]:.3g}",
        "",
    ]
    shown = [name for name in law.form.names if not name.startswith("f_")]
    lines += aligned([(name, parameter_text(law, name)) for name in shown])
    if law.form.tensors:
        # gamma and n trade off: what they make together is shown, with its interval.
        lines += ["", "share of the parameters that count, N_eff / N"]
        lines += aligned([(f"{bits} bits", factor_text(law, bits=bits)) for bits in (4, 6, 8, 16)])
    if law.recipes:
        lines += ["", "share of the parameters that count, N_eff / N"]
        lines += aligned([(name, factor_text(law, recipe=name)) for name in law.recipes])
    if (damage := law.damage) is not None:
        lines += [
            "",
            f"rounding after training adds {damage.c:.4g} D^{damage.by_tokens:.4f} "
            f"N_eff^{-damage.by_size:.4f} exp(-P_post / {damage.by_bits:.4f})",
        ]
    if (found := law.held_out) is not None:
        lines += [
            "",
            f"sizes left out one at a time: predicted within {found.mean:.2%} on average, "
            f"{found.worst:.2%} at worst",
        ]
    return "\n".join(lines + ([""] if law.notes else []) + list(law.notes))


def parameter_text(law: "Law", name: str) -> str:
    """The value of a parameter and its interval."""
    text = f"{law.values[name]:.4g}"
    if (span := law.interval(name)) is not None:
        text += f"   {LEVEL:.0%}: {span_text(*span, '.4g')}"
    return text


def factor_text(law: "Law", *, recipe: str | None = None, bits: float | None = None) -> str:
    """The share of the parameters that count, and its interval."""
    text = f"{law.factor(recipe=recipe, bits=bits):.3f}"
    if recipe == law.form.reference and recipe is not None:
        return f"{text}   by definition"
    if (span := law.factor_interval(recipe=recipe, bits=bits)) is not None:
        text += f"   {LEVEL:.0%}: {span_text(*span, '.3f')}"
    if recipe is not None and law.form.tensors:
        bits = law.equivalent_bits(recipe)
        text += f"   as {bits:.1f} bits" if bits is not None else "   as no rounding"
    return text


def aligned(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Lines with the second words below one another."""
    width = max((len(first) for first, _ in pairs), default=0)
    return [f"  {first:<{width}}  {second}" for first, second in pairs]


def plan_text(plan: "Plan") -> str:
    """The answer, how flat it is, what was compared, and the notes."""
    is_bits = plan.precision.replace(".", "").isdigit()
    name = f"{float(plan.precision):.3g} bits" if is_bits else plan.precision
    lines = [
        f"{plan.flops:.3g} FLOP: {name}, N = {plan.size:.3g}, D = {plan.tokens:.3g}, loss "
        f"{interval_text(plan.loss, plan.low, plan.high)}"
    ]
    if plan.sizes is not None:
        lines.append(f"best N in {LEVEL:.0%} of resampled fits: {span_text(*plan.sizes, '.3g')}")
    if plan.flat_sizes is not None:
        low, high = plan.flat_sizes
        lines.append(f"N within {FLAT:.1%} of this loss: {low:.3g} to {high:.3g}")
    lines.append(f"precisions within {FLAT:.1%} of this loss: {flat_text(plan, is_bits=is_bits)}")
    if plan.sure is not None and len(plan.choices) > 1:
        lines.append(f"{name} is the best in {plan.sure:.0%} of resampled fits")
    if len(plan.choices) > 1:
        rows = [
            (
                choice.precision,
                f"N_eff/N {choice.factor:6.3f}   N {choice.size:9.3g}   "
                f"D {choice.tokens:9.3g}   loss {interval_text(choice.loss, None, None)}",
            )
            for choice in plan.choices
        ]
        lines += ["", *aligned(rows)]
    return "\n".join(lines + ([""] if plan.notes else []) + list(plan.notes))


def flat_text(plan: "Plan", *, is_bits: bool) -> str:
    """The precisions that are as good: a list of names, or a range of bits."""
    if is_bits and len(plan.flat) > len(plan.choices):
        return f"{float(plan.flat[0]):.3g} to {float(plan.flat[-1]):.3g} bits"
    return ", ".join(plan.flat)
