"""Which claims of Train Large, Then Compress hold here: each check, its figures and its verdict.

A claim holds if it does at every seed (or for every run), does not if at none, and else nobody can
tell.
"""

from itertools import pairwise
from typing import NamedTuple

from train_then_compress import BUDGETS, ROUND_SPARSITY
from train_then_compress_pack import FULL
from train_then_compress_rows import EQUAL_TIME, WIDTHS, Row, increase, of_part, table, widths_of


class Found(NamedTuple):
    """What came of a check: whether it is met, for each seed or run, and the figures."""

    met: list[bool]
    figures: str


def verdict(met: list[bool]) -> str:
    """In words, with how often it was asked."""
    if not met:
        return "cannot tell: no run"
    if all(met):
        return f"holds ({len(met)} of {len(met)})"
    if not any(met):
        return f"does not hold (0 of {len(met)})"
    return f"cannot tell ({sum(met)} of {len(met)})"


def ladders(runs: list[Row]) -> dict[int, list[Row]]:
    """The runs of each seed that every size has, in the order of the ladder."""
    seeds = sorted({row["seed"] for row in runs})
    found = {seed: [row for row in runs if row["seed"] == seed] for seed in seeds}
    return {seed: own for seed, own in found.items() if tuple(widths_of(own)) == WIDTHS}


def listed(values: list[float], digits: int = 3) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def each_seed(found: dict[int, list[float]], digits: int = 3) -> str:
    """The values of all sizes, seed by seed."""
    return "; ".join(f"seed {seed}: {listed(own, digits)}" for seed, own in found.items())


def equal_steps(rows: list[Row]) -> Found:
    losses = {s: [r["loss"] for r in own] for s, own in ladders(of_part(rows, "steps")).items()}
    met = [all(a - b >= 0.05 for a, b in pairwise(own)) for own in losses.values()]
    return Found(met, each_seed(losses))


def falls(runs: list[Row]) -> Found:
    """Whether the damage of int4 and of int3 falls from size to size, and five times in all."""
    met, figures = [], []
    for seed, own in ladders(runs).items():
        for bits in (4, 3):
            damage = [increase(row, 0.0, bits) for row in own]
            is_falling = all(a > b for a, b in pairwise(damage))
            met.append(is_falling and damage[0] >= 5 * damage[-1])
            figures.append(f"seed {seed}, int{bits}: {listed(damage)}")
    return Found(met, "; ".join(figures))


def at_equal_time(rows: list[Row]) -> Found:
    return falls(of_part(rows, "budget", budget=EQUAL_TIME))


def at_equal_tokens(rows: list[Row]) -> Found:
    return falls(of_part(rows, "steps"))


def int8(rows: list[Row]) -> Found:
    runs = [*of_part(rows, "steps"), *of_part(rows, "budget")]
    damage = [increase(row, 0.0, 8) for row in runs]
    most = f"at most {max(damage):.4f} in {len(damage)} runs" if damage else ""
    return Found([value <= 0.005 for value in damage], most)


def half_pruned(rows: list[Row]) -> Found:
    """The two larger sizes are above 100,000 parameters in blocks, the others at most 26,624."""
    met, figures = [], {}
    for seed, own in ladders(of_part(rows, "budget", budget=EQUAL_TIME)).items():
        figures[seed] = damage = [increase(row, 0.5, FULL) for row in own]
        met += [value >= 0.3 for value in damage[:2]] + [value <= 0.06 for value in damage[2:]]
    return Found(met, each_seed(figures))


def rounds_save(rows: list[Row]) -> Found:
    met, figures = [], []
    for row in of_part(rows, "steps"):
        if "recovered" in row:
            once = increase(row, ROUND_SPARSITY, FULL)
            rounds = row["recovered"]["in rounds"] - row["loss"]
            met.append(rounds <= once / 2)
            figures.append(f"{row['width']}: {once:.3f} to {rounds:.3f}")
    return Found(met, "; ".join(figures))


def rounds_save_more(rows: list[Row]) -> Found:
    """Against pruning at once and as much training, over the dense model after as much."""
    met, figures = [], []
    for row in of_part(rows, "steps"):
        if "recovered" in row:
            own = row["recovered"]
            once, rounds = own["at once"] - own["dense"], own["in rounds"] - own["dense"]
            met.append(rounds <= once / 2)
            figures.append(f"{row['width']}: {once:.3f} to {rounds:.3f}")
    return Found(met, "; ".join(figures))


def best_size_grows(rows: list[Row]) -> Found:
    """Whether the best size of a larger budget is never smaller."""
    best: dict[int, dict[int, int]] = {}
    for budget in BUDGETS:
        for seed, own in ladders(of_part(rows, "budget", budget=budget)).items():
            least = min(own, key=lambda row: row["loss"])
            best.setdefault(seed, {})[budget] = least["width"]
    found = {seed: own for seed, own in best.items() if len(own) > 1}
    met = [all(a <= b for a, b in pairwise(own.values())) for own in found.values()]
    figures = [
        f"seed {seed}: " + ", ".join(f"{width} at {budget} s" for budget, width in own.items())
        for seed, own in found.items()
    ]
    return Found(met, "; ".join(figures))


def bytes_agree(rows: list[Row]) -> Found:
    found = [one for row in rows for one in row.get("compressed", ())]
    apart = [abs(one["counted_bytes"] / one["saved_bytes"] - 1) for one in found]
    files = [one["file_bytes"] / one["saved_bytes"] - 1 for one in found]
    figures = (
        f"at most {max(apart):.2%} apart in {len(apart)} files; with the header {max(files):.1%}"
        if apart
        else ""
    )
    return Found([value <= 0.02 for value in apart], figures)


def large_wins(runs: list[Row]) -> Found:
    """Each size in int4 against the next smaller one in FP32, which is four bytes a parameter."""
    met, figures = [], []
    for seed, own in ladders(runs).items():
        for small, large in pairwise(own):
            size = next(
                one["saved_bytes"]
                for one in large["compressed"]
                if (one["share"], one["bits"]) == (0.0, 4)
            )
            loss = large["loss"] + increase(large, 0.0, 4)
            whole = 4 * small["parameters"]
            met.append(size < whole and loss < small["loss"])
            figures.append(
                f"seed {seed}, {large['width']}: {size / 1000:.0f} kB, {loss:.3f}; "
                f"{small['width']}: {whole / 1000:.0f} kB, {small['loss']:.3f}"
            )
    return Found(met, "; ".join(figures))


def large_wins_at_equal_steps(rows: list[Row]) -> Found:
    return large_wins(of_part(rows, "steps"))


def large_wins_at_equal_time(rows: list[Row]) -> Found:
    return large_wins(of_part(rows, "budget", budget=EQUAL_TIME))


CHECKS = (
    ("1", "at equal steps each size is at least 0.05 better than the one before", equal_steps),
    ("2", "damage of int4, int3 falls with size, 5 times in all; equal CPU time", at_equal_time),
    ("3", "int8 costs at most 0.005 nats", int8),
    ("4", "50 % zeros at once cost at least 0.3 (small), at most 0.06 (large)", half_pruned),
    ("5", "check 2 at equal tokens", at_equal_tokens),
    ("6", "pruning to 60 % in rounds saves half of the damage of pruning at once", rounds_save),
    ("6, fair", "the same, if both are trained as long afterwards", rounds_save_more),
    ("7", "the best size does not fall as the budget grows", best_size_grows),
    ("8", "bytes as counted are those that are saved, within 2 %", bytes_agree),
    (
        "large, steps",
        "int4 is smaller and better than the next size in FP32",
        large_wins_at_equal_steps,
    ),
    ("large, time", "the same at equal CPU time", large_wins_at_equal_time),
)


def checks(rows: list[Row]) -> str:
    """All checks as a table."""
    lines = []
    for number, claim, check in CHECKS:
        found = check(rows)
        lines.append([number, claim, verdict(found.met), found.figures or "–"])
    return table(["", "claim", "verdict (met, of how many)", "figures"], lines)
