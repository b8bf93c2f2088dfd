import math

import pytest

from unitscale.laws import Row, rows_of

GOOD = {"N": 1e6, "D": "2e7", "loss": 2.5, "recipe": "fp8"}


def test_row_has_what_the_columns_say():
    (row,) = rows_of([GOOD]).rows
    assert row == Row(size=1e6, tokens=2e7, loss=2.5, recipe="fp8")


def test_columns_of_a_sweep_are_known():
    cells = {
        "n_params": "1000",
        "n_embedding_params": "400",
        "n_tokens": "5000",
        "loss": "3.5",
        "recipe": "fp32",
        "lr": "0.1",
        "seed": "3",
        "status": "finished",
        "diverged": "false",
        "model": "attention",
    }
    (row,) = rows_of([cells]).rows
    assert (row.size, row.tokens, row.rate, row.seed) == (600, 5000, 0.1, 3)


def test_empty_bits_are_not_rounded_and_p_is_all_three():
    table = [
        {"N": 1, "D": 1, "loss": 1, "P_w": "4", "P_a": "", "P_kv": "inf"},
        {"N": 1, "D": 1, "loss": 1, "P": 8, "P_w": "", "P_a": "", "P_kv": ""},
        {"N": 1, "D": 1, "loss": 1, "P_w": ""},
    ]
    assert [row.bits for row in rows_of(table).rows] == [
        {"w": 4},
        {"w": 8, "a": 8, "kv": 8},
        {},
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": math.nan}, "row 2: loss is nan; expected a finite number"),
        ({"loss": "nan"}, "row 2: loss is 'nan'"),
        ({"loss": ""}, "row 2: loss is ''"),
        ({"loss": math.inf}, "row 2: loss is inf"),
        ({"loss": -1}, "row 2: loss is -1; expected a number above 0"),
        ({"N": 0}, "row 2: N is 0; expected a number above 0"),
        ({"D": "many"}, "row 2: D is 'many'"),
        ({"D": True}, "row 2: D is True"),
        ({"recipe": ""}, "row 2 says no precision"),
        ({"P_w": 0.5}, "P_w is 0.5 bits; expected 1 to 64"),
        ({"P_w": 65}, "P_w is 65 bits"),
        ({"P_post": 3}, "row 2 has P_post alone"),
        ({"loss_ptq": 3}, "row 2 has loss_ptq alone"),
        ({"weight": 0}, "row 2: weight is 0"),
    ],
)
def test_bad_value_is_named(change, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        rows_of([GOOD, GOOD | change])


@pytest.mark.parametrize("column", ["N", "D", "loss"])
def test_missing_column_is_named(column):
    cells = {key: value for key, value in GOOD.items() if key != column}
    with pytest.raises(ValueError, match=f"row 1 has no column {column} or .*; it has"):
        rows_of([cells])


def test_more_embeddings_than_parameters_are_refused():
    cells = {"n_params": 10, "n_embedding_params": 10, "n_tokens": 1, "loss": 1, "recipe": "fp8"}
    with pytest.raises(ValueError, match="n_embedding_params is 10 of n_params 10"):
        rows_of([cells])


def test_no_mapping_is_refused():
    with pytest.raises(ValueError, match="row 1 is 3; expected values"):
        rows_of([3])


def test_rows_that_went_wrong_are_counted():
    table = rows_of(
        [
            GOOD,
            GOOD | {"loss": "", "status": "diverged"},
            GOOD | {"loss": None, "diverged": True},
            GOOD | {"loss": None, "diverged": "true"},
            GOOD | {"loss": "", "status": "failed"},
            GOOD | {"recipe": None, "P_w": 3, "P_a": 3},
        ]
    )
    assert len(table.rows) == 1
    assert [note[:20] for note in table.notes] == ["4 rows left out: of ", "1 rows left out: wit"]


def test_weights_of_three_bits_are_taken():
    assert len(rows_of([GOOD | {"recipe": None, "P_w": 3}]).rows) == 1


def test_best_rate_is_taken_and_one_that_a_seed_lost_is_not():
    def runs(rate, losses):
        return [GOOD | {"lr": rate, "seed": s, "loss": loss} for s, loss in enumerate(losses)]

    table = rows_of([*runs(0.1, [2.5, 2.6]), *runs(0.2, [2.4, 2.5]), *runs(0.4, [2.3])])
    assert [row.loss for row in table.rows] == [2.4, 2.5]
    assert table.notes == (
        "3 rows left out: of learning rates that were not the best of their kind of run",
    )


def test_several_models_are_refused():
    with pytest.raises(ValueError, match=r"several models \(conv, rnn\)"):
        rows_of([GOOD | {"model": "conv"}, GOOD | {"model": "rnn"}])
