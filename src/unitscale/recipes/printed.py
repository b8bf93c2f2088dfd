"""A recipe as lines of text: every part of it that is not the default. Imports no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unitscale.recipes.recipe import Recipe

__all__ = ["printed"]


def printed(recipe: "Recipe") -> str:
    """What `print(recipe)` shows: its products by rule, and all else that it changes."""
    lines = [f"{recipe.name}: {recipe.users}" if recipe.users else recipe.name]
    if recipe.throughout is not None:
        lines.append(f"  every tensor of a training run: {recipe.throughout}")
    elif not recipe.rules:
        lines.append("  rounds nothing")
    if recipe.skip:
        lines.append(f"  in full precision: {', '.join(recipe.skip)}")
    if recipe.spare:
        lines.append(f"  in full precision where a model has them: {', '.join(recipe.spare)}")
    every = "every other" if recipe.skip or recipe.spare else "every"
    for rule in recipe.rules:
        where = f"{every if rule.path == '*' else rule.path} {rule.op.replace('*', 'product')}"
        if rule.gemm is None:
            lines.append(f"  {where}: full precision")
            continue
        lines.append(f"  {where}")
        for name, left, right, result in rule.gemm.rows():
            end = "" if result == "as is" else f" -> {result}"
            lines.append(f"    {name:<12} {left} @ {right}{end}")
    if recipe.fused:
        groups = "; ".join(", ".join(names) for names in recipe.fused)
        lines.append(f"  weights side by side share one unit: {groups}")
    told = {
        "tensors between products": recipe.activations,
        "held for backward outside of products": recipe.saved,
        "optimizer states": recipe.optimizer,
        "gradients between processes": recipe.collectives,
        "loss scale": recipe.loss_scale,
        "executor": None if recipe.executor == "auto" else recipe.executor,
        "source": recipe.source or None,
    }
    lines += [f"  {word}: {value}" for word, value in told.items() if value is not None]
    return "\n".join(lines)
