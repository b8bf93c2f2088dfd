"""What a call has shown of a recipe's rules and of `skip=`: which match nothing, or too much."""

import warnings

from unitscale.units.placing import rounds_only_products
from unitscale.units.session import Session

__all__ = ["warn_of_unused_rules"]


def warn_of_unused_rules(session: Session, name: str) -> None:
    """Warn, once something has run, of rules and of `skip=` that no product has matched.

    A rule for everything is none of them: a model may have no products at all.
    """
    if session.rules_checked or not session.executables:
        return
    session.rules_checked = True
    warn_of_nothing_rounded(session, name)
    recipe, terms = session.recipe, session.terms
    # A module with two paths has a rule for each of them.
    used = {(rule.op, rule.gemm) for rule in terms.used_rules if rule is not None}
    special = [rule for rule in recipe.rules if (rule.path, rule.op) != ("*", "*")]
    unused = [rule for rule in special if (rule.op, rule.gemm) not in used]
    if unused:
        named = ", ".join(f"(path {rule.path!r}, op {rule.op!r})" for rule in unused)
        warnings.warn(
            f"{name}: of recipe {recipe.name!r} no product in this call matches the rule "
            f"{named}, or earlier rules take all that do; us.summary(model) has the products.",
            stacklevel=4,
        )
    skips = terms.used_skips
    idle = [one.label for one in session.beside.skips if skips.isdisjoint(one.patterns)]
    if idle and recipe.rounds:
        warnings.warn(
            f"{name}: skip={', '.join(idle)} keeps no product of this call in full precision: "
            "what it matches has none; us.summary(model) names the products.",
            stacklevel=4,
        )


def warn_of_nothing_rounded(session: Session, name: str) -> None:
    """Warn of a call in which patterns kept every product in full precision: nothing is rounded."""
    recipe, skips = session.recipe, session.terms.used_skips
    places = [place for graph in session.executables for place in graph.places.values()]
    if not skips or not rounds_only_products(recipe) or any(x.program.rounded for x in places):
        return
    warnings.warn(
        f"{name}: skip={', '.join(map(repr, sorted(skips)[:3]))} keeps every product of this call "
        f"in full precision, so recipe {recipe.name!r} rounds nothing; leave modules out of it "
        "with us.set_recipe(model, recipe, skip=...). us.summary(model) names the products.",
        stacklevel=5,
    )
