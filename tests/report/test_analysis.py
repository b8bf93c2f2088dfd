"""The tables of `analyse`."""

from unitscale.report.analysis import left_rows


def test_only_what_was_left_at_1_is_listed() -> None:
    halves = {"x": (1.0, 1.0), "y": (1.0, 4.0), "bias": (0.0625, 64.0), "z": (2.0, 2.0)}
    reasons = dict.fromkeys(("x", "y", "bias"), "input of the graph")
    tensors = [
        {"name": name, "s": s, "phi": phi, "reason": reasons.get(name)}
        for name, (s, phi) in halves.items()
    ]
    because = {"because": "input of the graph", "tensors": 1}
    assert left_rows({"tensors": tensors}) == [
        {"left at 1": "s and phi", **because, "such as": "x"},
        {"left at 1": "s", **because, "such as": "y"},
    ]
