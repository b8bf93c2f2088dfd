"""The library unit-scaling against this one: outputs, gradients and learning rates, side by side.

    pip install unit-scaling && python experiments/check_migration.py

Each operation gets the same inputs and the same gradient of its output, in float64. Printed are the
ratios ours / theirs of the output and of each gradient; 1 is equal to 1e-5 of its norm, a number is
one factor for all elements, and "differs" is neither. Then a decoder's parameters are loaded from
theirs. Exit code 1 if one that is to be equal is not, or one that is not to be is: docs/migrate.md
has the table.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

import unitscale.functional as U
from migration_decoder import decoder, rates
from migration_operations import Row, compare, operations
from unitscale import __version__, optim, unit_scale
from unitscale import nn as unn


class Trap(NamedTuple):
    """What a user of theirs takes for granted, what both do, and whether a run showed it."""

    name: str
    theirs: str
    ours: str
    holds: bool


def traps(uu: Any) -> Iterator[Trap]:
    """Differences that raise no error, each by running both."""
    x = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    yield Trap(
        "`Linear(16, 16)`, `Conv1d`",
        "no bias",
        "a bias, as torch; pass `bias=False`",
        uu.Linear(16, 16).bias is None
        and uu.Conv1d(16, 16, 3).bias is None
        and unn.Linear(16, 16).bias is not None
        and unn.Conv1d(16, 16, 3).bias is not None,
    )
    yield Trap(
        "`LayerNorm(16)`, `RMSNorm(16)`",
        "no gain, no bias; RMSNorm's eps is 1e-5",
        "affine, as torch; eps of the dtype; pass `elementwise_affine=False`, `eps=1e-5`",
        uu.LayerNorm(16).weight is uu.RMSNorm(16).weight is None
        and uu.RMSNorm(16).eps == 1e-5
        and unn.LayerNorm(16).weight is not None
        and unn.RMSNorm(16).weight is not None
        and unn.RMSNorm(16).eps is None,
    )
    yield Trap(
        "`MLP(16)`",
        "SwiGLU: three matrices",
        'GELU: two; `MLP(16, activation="silu", gated=True)` is theirs',
        len(list(uu.MLP(16).parameters())) == 3 and len(list(unn.MLP(16).parameters())) == 2,
    )
    yield Trap(
        "`residual_split(x, tau)`",
        "`residual, skip`",
        "`skip, branch`: swapped names train, with the gradients of the two weights exchanged",
        first_gradient(uu.functional.residual_split) != first_gradient(U.residual_split),
    )
    theirs, ours = uu.MHSA(16, 2, True, dropout_p=0.5).eval(), attention().eval()
    yield Trap(
        "attention dropout in evaluation",
        "drops",
        "does not",
        not torch.equal(theirs(x), theirs(x)) and torch.equal(ours(x, x, x)[0], ours(x, x, x)[0]),
    )
    group = uu.optim.AdamW([uu.Linear(16, 16, bias=True).bias], lr=1.0, weight_decay=0.1)
    own = optim.param_groups(unn.Linear(16, 16), lr=1.0, weight_decay=0.1)
    yield Trap(
        "`weight_decay` of biases and gains",
        "decayed",
        "not decayed",
        group.param_groups[0]["weight_decay"] > 0
        and [g["weight_decay"] for g in own if g["kind"] == "bias"] == [0.0],
    )
    yield Trap(
        "a layer in a stack of 3, at rate 1",
        "3 layers: divided by sqrt(3)",
        "6 residual branches: divided by sqrt(6)",
        stacked(uu),
    )
    yield Trap(
        "`unit_scale(model)`",
        "another model: weights drawn anew, other function, rates to be tuned",
        "the same function, parameters and rates",
        transformed(uu),
    )


def first_gradient(split: Any) -> float:
    """The gradient of the first of the two results."""
    x = torch.ones(1, requires_grad=True)
    split(x, 0.5)[0].backward()
    return round(float(x.grad), 4)


def attention() -> nn.Module:
    return unn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True)


def stacked(uu: Any) -> bool:
    """Whether ours is theirs over sqrt(2) for every matrix inside of the layers."""
    inside = {n: pair for n, pair in rates(uu).items() if ".layers." in n}
    return len(inside) == 21 and all(
        abs(ours / theirs - 2**-0.5) < 1e-6 for theirs, ours in inside.values()
    )


def transformed(uu: Any) -> bool:
    """Whether theirs changes what a linear layer computes, and ours does not."""
    from unit_scaling import transforms

    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Tanh())
    before = plain(x)
    theirs = transforms.unit_scale(plain)
    unit_scale(plain, "fp32-units", inner="eager")
    same = torch.equal(plain(x), before)
    return same and not torch.allclose(theirs(x), before)


def table(rows: Iterable[Row]) -> str:
    """Markdown: a row per case."""
    lines = ["| operation | output | gradients | why |", "|---|---|---|---|"]
    for row in rows:
        grads = {str(value) for value in row.grads.values()}
        if len(grads) == 1:
            text = grads.pop()
        elif len(row.grads) > 4:
            off = [value.off for value in row.grads.values()]
            text = f"differ ({min(off):.2f} to {max(off):.2f})"
        else:
            text = ", ".join(f"{name} {value}" for name, value in row.grads.items())
        lines.append(f"| {row.name} | {row.output} | {text} | {row.reason} |")
    return "\n".join(lines)


def rate_table(found: dict[str, tuple[float, float]]) -> str:
    """Markdown: a row per parameter, of the layers the first."""
    lines = ["| parameter | theirs | ours | ours / theirs |", "|---|---|---|---|"]
    for name, (theirs, ours) in found.items():
        if ".layers." not in name or ".layers.0." in name:
            short = name.replace("decoder.decoder.", "decoder.")
            lines.append(f"| `{short}` | {theirs:.4f} | {ours:.4f} | {ours / theirs:.4f} |")
    return "\n".join(lines)


def trap_table(found: Iterable[Trap]) -> str:
    """Markdown: a row per trap."""
    lines = ["| | unit-scaling | unitscale |", "|---|---|---|"]
    lines += [f"| {trap.name} | {trap.theirs} | {trap.ours} |" for trap in found]
    return "\n".join(lines)


def main() -> None:
    """Compare, print, and say whether all is as expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    try:
        import unit_scaling as uu
    except ModuleNotFoundError as error:
        sys.exit(f"check_migration: {error.name} is not installed; run: pip install unit-scaling")
    rows = [compare(case) for case in operations(uu.functional)]
    rows += [decoder(uu, same_factors=False), decoder(uu, same_factors=True)]
    found = list(traps(uu))
    versions = f"unitscale {__version__}, unit-scaling {uu.__version__}, torch {torch.__version__}"
    print(versions, table(rows), rate_table(rates(uu)), trap_table(found), sep="\n\n")
    if wrong := [trap.name for trap in found if not trap.holds]:
        sys.exit(f"check_migration: not as described: {', '.join(wrong)}")
    if unexpected := [row.name for row in rows if not row.is_expected]:
        sys.exit(f"check_migration: not as expected: {', '.join(unexpected)}")


if __name__ == "__main__":
    main()
