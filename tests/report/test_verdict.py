"""The verdict in words: counts, the worst tensor, faults with layer and step."""

from report.sample import recording_rows
from unitscale.report import group, judge
from unitscale.report.recording import Series, thin
from unitscale.report.verdict import latest_state


def test_healthy_run_has_nothing_to_name() -> None:
    verdict = judge(group(recording_rows(steps=[0, 50])))
    assert verdict.paragraph == (
        "None of 8 tensors loses more than 1 % of its values in E4M3FN. "
        "None of 8 tensors loses more than 1 % of its values in E5M2."
    )


def test_fault_is_named_with_layer_and_step() -> None:
    verdict = judge(group(recording_rows(fault_at=100, layer=2, steps=range(0, 300, 50))))
    assert verdict.sentences[0] == (
        "At step 100 the gradients of layers.2 fell by 2^20 within one sample (since step 50); "
        "the largest change is in layers.2.linear (gradient), one of 1 tensor that moved."
    )
    assert verdict.sentences[2] == (
        "1 of 8 tensors loses more than 1 % of its values in E5M2; worst: layers.2.linear "
        "(gradient), 100 % flushed to zero at step 100."
    )


def test_single_step_is_not_named() -> None:
    rows = recording_rows(fault_at=0, layer=1, steps=[0])
    assert judge(group(rows)).sentences[1] == (
        "1 of 8 tensors loses more than 1 % of its values in E5M2; worst: layers.1.linear "
        "(gradient), 100 % flushed to zero."
    )


def test_held_tensors_are_counted_once_each_before_and_after_units() -> None:
    held = {"value": 0, "gradient": 10}
    header, *rows = recording_rows(steps=[0, 50])
    rows = [row | {"held_log2": held[row["direction"]]} for row in rows]
    assert judge(group([header, *rows])).sentences[-1] == (
        "8 of 16 tensors have an RMS between 1/2 and 2 as the model computes them, and 16 as they "
        "are held at their units."
    )


def test_drift_of_eight_octaves_is_training_and_of_ten_a_fault() -> None:
    header, *rows = recording_rows(steps=[0, 50])
    for octaves, count in ((8, 0), (10, 1)):
        moved = [
            row | {"rms": row["rms"] * 2.0**octaves}
            if row["step"] == 50 and row["name"] == "layers.1.add" and row["direction"] == "value"
            else row
            for row in rows
        ]
        assert len(judge(group([header, *moved])).jumps) == count


def test_moments_are_counted_apart() -> None:
    rows = recording_rows(steps=[0])
    moment = rows[1] | {"name": "w:exp_avg_sq", "direction": "state"}
    moment["formats"] = {
        name: shares | {"flushed": 1.0} for name, shares in rows[1]["formats"].items()
    }
    verdict = judge(group([*rows, moment]))
    assert verdict.losses == []
    assert "Of the optimizer's moments, 1 of 1 would lose more than 1 % in E4M3FN" in (
        verdict.paragraph
    )


def test_layer_is_the_numbered_module() -> None:
    names = {
        "trunk.3.body.linear#2": "trunk.3",
        "layers.0.attn.weight:exp_avg": "layers.0",
        "norm.layer_norm": "norm",
        "cross_entropy": "cross_entropy",
        "embedding.weight": "embedding",
    }
    assert {name: Series(name, "", "value").layer for name in names} == names


def test_thinning_keeps_ends_and_what_is_wanted() -> None:
    recording = thin(group(recording_rows(steps=range(100))), 5, keep=[41])
    assert recording.steps == [0, 25, 41, 50, 74, 99]


def test_state_of_a_step_names_the_worst_tensor() -> None:
    rows = recording_rows(fault_at=0, layer=1, steps=[0])[1:]
    assert latest_state(rows, ["E4M3FN", "E5M2"]) == {
        "worst": "layers.1.linear (gradient)",
        "worst_lost_fraction": 1.0,
        "losing_fraction": 1 / 16,
    }
    assert latest_state([], ["E5M2"]) is None
