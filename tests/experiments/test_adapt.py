import numpy as np

import adapt


def test_images_are_the_same_for_a_seed_and_of_eight_classes():
    images, labels = adapt.draw(16, seed=0)
    assert (images == adapt.draw(16, seed=0)[0]).all()
    assert (images != adapt.draw(16, seed=1)[0]).any()
    assert np.bincount(labels).tolist() == [2] * adapt.CLASSES
    assert images.min() >= 0
    assert images.max() <= 1
    assert [tuple(b.shape) for b in adapt.batches(np.repeat(images, 5, 0))] == [
        (64, 1, 32, 32),
        (16, 1, 32, 32),
    ]


def test_the_table_has_a_mean_only_where_all_corruptions_are_there():
    rows = [
        {"corruption": name, "bits": bits, "method": "foa", "accuracy": 50.0 + i, "ece": 2.0}
        for bits in (32, 8)
        for i, name in enumerate(adapt.CORRUPTIONS)
    ]
    lines = adapt.table(rows[:-1]).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| 32 | foa | - | 50.0 / 2.0 |")
    assert lines[2].endswith("| 52.0 / 2.0 |")
    assert lines[3].endswith("| - | - |")


def test_a_weak_model_is_measured_and_rows_are_not_made_twice(tmp_path):
    weights = adapt.build().state_dict()
    clean, _ = adapt.draw(64, seed=3)
    rows = tmp_path / "rows.jsonl"
    methods, adapt.METHODS[32] = adapt.METHODS[32], ("none", "t3a", "tent", "shift")
    try:
        for _ in range(2):
            adapt.measure(weights, 32, {"clean": clean}, rows, seed=0)
    finally:
        adapt.METHODS[32] = methods
    found = adapt.read(rows)
    assert [r["method"] for r in found] == ["none", "t3a", "tent", "shift"]
    # The first batch has no history, and TENT answers before it steps.
    assert found[0]["accuracy"] == found[2]["accuracy"] == found[3]["accuracy"]
