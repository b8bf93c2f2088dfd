from unitscale.anatomy.carry import Passage, carried_state


def passage():
    """A layer that is dropped, and one that takes its number and becomes half as large."""

    def descendants(name):
        if not name.startswith("0."):
            yield name.replace("1.", "0.", 1) if name.startswith("1.") else name

    def change(found, name):
        return (-1, 2) if name.startswith("1.") else (0, 0)

    return Passage(
        descendants=descendants,
        change=change,
        old=["0.weight", "1.weight"],
        new=["0.weight"],
    )


def state(start=""):
    units = {"0.linear": (1, 1), "1.linear": (3, 4), "1.weight": (1, 1), "sum": (0, 5)}
    return {
        "step": 100,
        "graphs": [[0, True, [f"{start}0.weight", f"{start}1.weight"], ["x"]]],
        "units": {f"{start}{n}": {"s": s, "phi": phi} for n, (s, phi) in units.items()},
        "amaxes": {
            f"{start}1.linear:0": [2.0],
            f"{start}1.linear:1": [2.0],
            f"{start}1.linear:gradient": [2.0],
            f"{start}0.linear:0": [9.0],
        },
        "pending_amaxes": [{f"{start}1.linear:1": [4.0, 16]}],
        "without_phi": [f"{start}0.linear", f"{start}1.linear"],
        "evaluated": [],
    }


def test_what_is_dropped_is_gone_and_what_stays_is_renamed_and_changed():
    for start in ("", "model."):
        found = carried_state(state(start), passage(), start)
        assert found["units"] == {
            f"{start}0.linear": {"s": 2, "phi": 6},
            f"{start}0.weight": {"s": 0, "phi": 3},
            f"{start}sum": {"s": 0, "phi": 5},
        }
        # The weight's amax follows its values, the gradient's its phi, and an input's stays.
        assert found["amaxes"] == {
            f"{start}0.linear:0": [2.0],
            f"{start}0.linear:1": [1.0],
            f"{start}0.linear:gradient": [0.5],
        }
        assert found["pending_amaxes"] == [{f"{start}0.linear:1": [2.0, 16]}]
        assert found["graphs"] == [[0, True, [f"{start}0.weight"], ["x"]]]
        assert found["without_phi"] == [f"{start}0.linear"]
        assert found["step"] == 3


def test_names_outside_of_the_model_stay():
    found = carried_state({**state(), "evaluated": ["loss"]}, passage(), "model.")
    assert found["evaluated"] == ["loss"]
    assert found["units"].keys() == state()["units"].keys()
