"""The tables that are made from the code: number formats, recipes, ops of existing models.

    python docs/scripts/site_tables.py            # writes the pages anew
    python docs/scripts/site_tables.py --check    # exit code 1, and which, if one is old

The scales of unit-scaled ops are measured and not listed: `python benchmarks/op_scales.py`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unitscale.formats import BLOCK_FORMATS, FORMATS
from unitscale.recipes import RECIPES, RIVALS

DOCS = Path(__file__).parents[1]
MADE = "Made by `python docs/scripts/site_tables.py` from the code; do not edit."


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Rows that share their keys, as Markdown."""
    found = [{key: str(value) for key, value in row.items()} for row in rows]
    head = list(found[0])
    lines = [head, ["---"] * len(head), *([row[key] for key in head] for row in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """A power of two as one, where that is shorter; else five digits."""
    short = f"{value:.5g}"
    if value > 0 and len(short) > 6:
        exponent = 0
        while value >= 2:
            value, exponent = value / 2, exponent + 1
        while value < 1:
            value, exponent = value * 2, exponent - 1
        if value == 1:
            return f"2^{exponent}"
    return short


def formats_page() -> str:
    """Every number format, and every block format."""
    single = table(
        {
            "format": f"`{f.name}`",
            "bits": f.bits,
            "exponent + mantissa": f"{f.exponent_bits} + {f.mantissa_bits}",
            "largest": number(f.max),
            "smallest normal": number(f.min_normal),
            "smallest": number(f.min_subnormal),
            "step at 1": number(f.epsilon),
            "Inf": "yes" if f.has_inf else "no",
            "NaN": "yes" if f.has_nan else "no",
            "source": f.source,
        }
        for f in sorted(FORMATS.values(), key=lambda f: (-f.bits, f.name))
    )
    blocks = table(
        {
            "format": f"`{f.name}`",
            "element": f"`{f.element}`",
            "values a scale": f.size,
            "scale": f"`{f.scale}`" + (", and one FP32 a tensor" if f.has_tensor_scale else ""),
            "bits a value": f"{f.bits_per_value:g}",
            "source": f.source,
        }
        for f in BLOCK_FORMATS.values()
    )
    return f"""# Number formats

{MADE}

Names follow ml_dtypes: E4M3 has 4 bits of exponent and 3 of mantissa; F says that there is no
infinity, N that one code alone is NaN, U that there is no sign, UZ that there is no negative zero,
B11 that the bias is 11. `unitscale formats` prints the same, and `us.formats` has them as data.

{single}

A block format is a narrow format whose values share a scale, a short run of them at a time.

{blocks}
"""


def recipes_page() -> str:
    """Every recipe in a line."""
    from unitscale.cli.recipes import describe, line, other_formats

    rows = []
    for name, recipe in RECIPES.items():
        row = line(describe(recipe))
        others = "".join(f", {op} in {fmt}" for op, fmt in other_formats(recipe).items())
        rows.append(
            {
                "recipe": f"`{name}`",
                "values": row["values"],
                "gradients": row["gradients"],
                "scale": row["scale"],
                "products": row["products"] + others,
                "used by": row["used by"] or "",
            }
        )
    rivals = ", ".join(f"`{name}`" for name in RIVALS)
    return f"""# Recipes, listed

{MADE}

One line each: what inputs and weights are rounded to, what gradients are (and what results are
rounded to, behind the arrow), where an operand's scale comes from and which values share one,
which products are rounded, and who trains so. `unitscale recipes NAME` shows every operand and the
source. `docs/recipes.md` explains the words, and `docs/choose_recipe.md` helps to choose.

{table(rows)}

The group `rivals` has one of each kind that people train with: {rivals}.
"""


KINDS = {
    "general": "Operands are recovered before the op, and its output is divided by its unit after "
    "it. Right for every op; ops that are not in the table are of this kind.",
    "linear": "`f(c x) = c f(x)` in the named operands: they stay as they are held, and their "
    "factors move to one on the output.",
    "sum": "A weighted sum: each operand is multiplied by `s(x) / s(y)`.",
    "view": "The same memory, so the same unit.",
    "attention": "`softmax(q k) v`: the units of query and key go on the query alone; it is linear "
    "in the value.",
}


def op_name(form: Any) -> str:
    """How people write a form of an op."""
    if isinstance(form, str):
        return "" if form.startswith("__") else f"Tensor.{form}"
    module = getattr(form, "__module__", None) or ""
    name = getattr(form, "__name__", str(form))
    if module in ("_operator", "operator"):
        return f"operator.{name}"
    if module.startswith("torch.nn.functional") or module == "torch._C._nn":
        return f"F.{name}"
    if module.startswith("unitscale"):
        return f"us.{name}"
    return f"torch.{name}"


def ops_page() -> str:
    """Every op of the table, by its kind."""
    from unitscale.units.op_table import OPS

    rows, unrounded = [], []
    for op in OPS:
        names = [n for n in dict.fromkeys(map(op_name, op.forms)) if n]
        shown = ", ".join(f"`{n}`" for n in names[:4]) + (" ..." if len(names) > 4 else "")
        if op.unrounded:
            listed = dict.fromkeys(re.sub(r"^aten[.]", "", name) for name in op.registered)
            listed = ", ".join(f"`{name}`" for name in listed)
            unrounded.append({"product": listed or shown, "why no recipe rounds it": op.unrounded})
        elif shown:
            rule = op.rule
            operands = [name for _, name in rule.operands]
            rows.append(
                {
                    "op": shown,
                    "kind": rule.kind,
                    "operands": ", ".join(operands) if operands else "every tensor",
                    "rounded by recipes": "yes" if rule.product else "no",
                    "input held in 8 bits by `saved=`": "yes" if op.saved else "no",
                }
            )
    kinds = "\n".join(f"- **{name}**: {text}" for name, text in KINDS.items())
    return f"""# Ops of existing models

{MADE}

How `unit_scale` treats each op of a model that somebody else wrote (`docs/units.md` has the rule).
What is not listed is `general`, which is right for every op: nothing is refused for being unknown.

{kinds}

{table(rows)}

Matrix products that keep full precision under every recipe:

{table(unrounded)}
"""


PAGES: dict[str, Callable[[], str]] = {
    "formats.md": formats_page,
    "catalogue.md": recipes_page,
    "op_rules.md": ops_page,
}


def old_pages(folder: Path = DOCS) -> list[str]:
    """The pages that are not what the code would make now."""
    return [
        name
        for name, make in PAGES.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != make()
    ]


def main() -> None:
    """Write them, or say which are old."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one is old")
    if parser.parse_args().check:
        sys.exit(f"old: {', '.join(old)}" if (old := old_pages()) else 0)
    for name, make in PAGES.items():
        temporary = DOCS / f"{name}.tmp"
        temporary.write_text(make(), encoding="utf-8")
        temporary.replace(DOCS / name)
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
