import json

import pytest

from unitscale.laws import read_rows
from unitscale.sweep.row import Count, as_csv, base
from unitscale.train.config import TrainConfig

MEASURED = {
    "n_tokens": 5120,
    "loss": 2.5,
    "status": "finished",
    "diverged": False,
    "reason": None,
}


def sweep_row(**config):
    from unitscale.sweep import Point

    point = Point.of(TrainConfig(steps=10, batch_size=8, sequence_length=64, **config))
    return base(point, Count(1000, 400)) | MEASURED


RUN = {
    "recipe": "fp8-e4m3-current",
    "seed": 1,
    "lr": 0.01,
    "valid_loss": 2.25,
    "steps_done": 10,
    "diverged": False,
    "unit_scaled": False,
}
RESULTS = {
    "model": "attention",
    "config": {"batch_size": 4, "sequence_length": 16, "model": {"width": 32}},
    "runs": [RUN, RUN | {"recipe": "fp8", "diverged": True, "valid_loss": None}],
}


def test_runs_csv_of_a_sweep_is_read_as_it_is(tmp_path):
    rows = [sweep_row(recipe="fp32"), sweep_row(recipe="mxfp4", seed=2)]
    (tmp_path / "runs.csv").write_text(as_csv(rows))
    table = read_rows([tmp_path])
    assert [(r.size, r.tokens, r.loss, r.recipe, r.seed) for r in table.rows] == [
        (600, 5120, 2.5, "fp32", 0),
        (600, 5120, 2.5, "mxfp4", 2),
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "runs.jsonl").write_text(lines)
    assert read_rows([tmp_path / "runs.jsonl"]) == table


def test_results_of_a_comparison_are_read_with_their_parameters(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    seen = []

    def count(settings):
        seen.append(settings)
        return 1000, 400

    table = read_rows([tmp_path], count=count)
    (row,) = table.rows
    assert (row.size, row.tokens, row.loss) == (600, 640, 2.25)
    assert row.recipe == "fp8-e4m3-current"
    assert seen[0]["model"] == {"width": 32}
    assert table.notes == ("1 rows left out: of runs that diverged or failed",)
    with pytest.raises(ValueError, match="does not say how many parameters"):
        read_rows([tmp_path])


def test_several_files_are_one_table(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("N,D,loss,recipe\n1,2,3,fp32\n")
    assert len(read_rows([tmp_path / "a.csv", tmp_path / "b.csv"]).rows) == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "", "has no row"),
        ("x.csv", "N,D,loss,recipe\n", "has no row"),
        ("x.csv", "N,loss,recipe\n1,2,fp8\n", "row 1 has no column D or n_tokens"),
        ("x.csv", "N,D,loss,recipe\n1,2,3\n", "line 2 has not as many cells"),
        ("x.csv", "N,D,loss,recipe\n1,2,3,fp8,5\n", "line 2 has not as many cells"),
        ("x.csv", "N,D,loss,recipe\n1,2,nan,fp8\n", "row 1: loss is 'nan'"),
        ("x.csv", b"\xff\xfe", "is not UTF-8"),
        ("x.jsonl", "{\n", "line 1 is not JSON"),
        ("x.jsonl", "3\n", "row 1 is 3"),
        ("x.json", "{", "x.json: "),
        ("x.json", "[]", "expected the results.json of `compare`"),
        ("x.json", '{"runs": [{}], "config": {}}', "a run has no recipe or no steps_done"),
    ],
)
def test_what_is_no_table_is_named(name, text, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words) as caught:
        read_rows([path])
    assert str(path) in str(caught.value)


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no runs\.csv and no results\.json"):
        read_rows([tmp_path])
    with pytest.raises(FileNotFoundError):
        read_rows([tmp_path / "none.csv"])
