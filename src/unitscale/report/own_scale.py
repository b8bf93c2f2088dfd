"""What a recording says of operands whose scale the recipe computes from them: not by their shares.

Rows have no such scale. What is lost under it is in the what-if rows of the run's own recipe, if
the recording has them; else a sentence says how to get them.
"""

from collections.abc import Sequence

from unitscale.report.recording import Recording, Series, known_recipe
from unitscale.report.what_if import Answer, answers_of
from unitscale.report.wording import plural

__all__ = ["how_to_see", "own_scale_sentences"]


def how_to_see(recipe: str | None) -> str:
    """How a person sees what a recipe with scales of its own loses.

    Args:
        recipe: its name; only one of the catalogue can be asked for by it.
    """
    if known_recipe(recipe) is None:
        return "record with record(what_if=[RECIPE]), the recipe of the run, to see it"
    return (
        f"record with record(what_if=[{recipe!r}]) or run `unitscale analyse MODULE:FACTORY "
        f"--what-if {recipe}` to see it"
    )


def own_scale_sentences(
    recording: Recording, found: Sequence[Series], *, worth_naming: float
) -> list[str]:
    """What is lost under scales that are computed from these operands, or how to see it.

    Args:
        found: the operands; none give no sentence.
        worth_naming: the share of an operand's values from which on a loss is counted.
    """
    if not found:
        return []
    name = recording.recipe_name
    known = [a for a in answers_of(recording.what_if) if a.recipe == name and a.why is None]
    if known and name is not None:
        return [measured(name, known, worth_naming)]
    who = "The recipe" if name is None else name
    scales = "scale of 1 operand" if len(found) == 1 else f"scales of {len(found)} operands"
    return [
        f"{who} computes the {scales} from {'its' if len(found) == 1 else 'their'} values, so "
        "what is lost at those scales is not in these rows; " + how_to_see(name) + "."
    ]


def measured(name: str, known: Sequence[Answer], worth_naming: float) -> str:
    """What the what-if rows of a run's own recipe say."""
    losing = sorted((a for a in known if lost(a) > worth_naming), key=lambda a: -lost(a))
    products = plural(len(known), "product")
    if not losing:
        return (
            f"At the scales that {name} computes, none of {products} loses more than 1 % of the "
            "values of an operand."
        )
    worst, shares = losing[0], []
    for share, word in ((worst.flushed, "flushed to zero"), (worst.saturated, "saturated")):
        if share:
            shares.append(f"{100 * share:.2g} % {word}")
    verb = "loses" if len(losing) == 1 else "lose"
    return (
        f"At the scales that {name} computes, {len(losing)} of {products} {verb} more than 1 % of "
        f"the values of an operand; worst: {worst.product}, up to {' and '.join(shares)}."
    )


def lost(one: Answer) -> float:
    """The larger share of an operand's values that is flushed or saturated."""
    return max(one.flushed or 0.0, one.saturated or 0.0)
