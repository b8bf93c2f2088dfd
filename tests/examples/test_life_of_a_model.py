"""The life of a model: every step is done once, whole, and is seen where it did nothing."""

import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import life_of_a_model
import life_report
import life_training

import unitscale as us
from unitscale.data import open_corpus

TINY = {"steps": 4, "width": 16, "depth": 1, "seed": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_bytes(b"To be, or not to be, that is the question. " * 1000)
    return open_corpus(text)


@pytest.fixture
def life(tmp_path, corpus):
    return life_training.Life(root=tmp_path, corpus=corpus, **TINY)


def without_seconds(rows):
    return {name: {k: v for k, v in row.items() if k != "cpu_s"} for name, row in rows.items()}


def a_row(**own):
    row = {"before": 2.0, "after": 1.0, "checks": [], "shape": "16 x 1", "parameters": 1000}
    row |= {"bytes": 4000, "tokens": 0, "recipe": "fp8", "rounded": "7 of 7", "units": {}}
    return row | own


def test_a_life_goes_on_where_it_was_stopped(life, tmp_path, monkeypatch, capsys):
    """In FP32, with all seven steps: equal to the bit to one that was never stopped."""
    whole = life_of_a_model.lived(replace(life, root=tmp_path / "whole", recipe=None))
    stopped = replace(life, root=tmp_path / "stopped", recipe=None)

    def killed(life, source, folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(life_of_a_model.LIFE, "prune", killed)
        with pytest.raises(KeyboardInterrupt):
            life_of_a_model.lived(stopped)
    assert not (stopped.root / "prune").exists()
    capsys.readouterr()
    rows = life_of_a_model.lived(stopped)
    printed = capsys.readouterr().out
    assert printed.count("done before, read back") == 3
    assert not (stopped.root / "prune" / "half").exists()
    assert without_seconds(rows) == without_seconds(whole)
    assert life_report.failed(rows) == [] == [x for row in rows.values() for x in row["warned"]]
    assert rows["train on"]["after"] < rows["train"]["before"] - 0.5
    assert rows["prune"]["parameters"] < 0.55 * rows["train on"]["parameters"]
    assert rows["export"]["bytes"] < 0.8 * rows["distil"]["bytes"]  # embeddings and head stay


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_script_lives_a_life_in_fp8(tmp_path, monkeypatch, capsys):
    """All steps in the recipe, with what is tried instead, and every check holds."""
    arguments = [f"--{name}={value}" for name, value in TINY.items()]
    monkeypatch.setattr(sys, "argv", ["life", *arguments, "--out", str(tmp_path / "life")])
    assert life_of_a_model.main() == 0
    found = json.loads((tmp_path / "life" / "report.json").read_text())
    rows = found["life"]
    trained = ("train", "grow", "train on", "prune", "distil")
    assert {rows[name]["recipe"] for name in trained} == {life_training.RECIPE}
    assert rows["grow"]["units"]["carried over"] == rows["grow"]["units"]["in force"]
    assert rows["prune"]["units"]["carried over"] == rows["prune"]["units"]["in force"]
    assert [rows[name]["rounded"] for name in rows] == ["7 of 7", *["14 of 14"] * 6]
    assert len(rows["train on"]["instead"]) == len(rows["distil"]["instead"]) == 2
    assert "NO" not in (tmp_path / "life" / "report.md").read_text()
    capsys.readouterr()
    for name in ("distil", "quantize", "export"):
        shutil.rmtree(tmp_path / "life" / name)
    assert life_of_a_model.main() == 0  # as if it had been stopped before these
    assert capsys.readouterr().out.count("done before, read back") == 4 + 7 + 4
    again = json.loads((tmp_path / "life" / "report.json").read_text())
    assert without_seconds(again["life"]) == without_seconds(rows)


def test_a_recipe_that_rounds_nothing_is_seen(life):
    life = replace(life, recipe="fp32-units")
    model = life.new(1)
    life.loss(model)
    share, checks = life_training.in_force(life, model, steps=4)
    assert share == "0 of 7"
    assert [one["holds"] for one in checks] == [False, False, False]


def test_units_that_did_not_come_along_are_seen(life):
    row = a_row(units={"in force": 80})
    assert [one["holds"] for one in life_training.came_along(life, 0, row)] == [False]
    assert [one["holds"] for one in life_training.came_along(life, 80, row)] == [True]


def test_a_parameter_that_does_not_move_is_seen(life):
    model = replace(life, recipe=None).new(1)
    model.lm_head.requires_grad_(False)
    moved = life_training.learn(model, life_training.adamw(model), life.batches(1, 1), 1)
    assert (moved["answer"], moved["holds"]) == ("11 of 12", False)


def test_a_folder_that_gives_another_loss_is_seen(life, tmp_path):
    life_report.write(tmp_path / "row.json", json.dumps({"after": 2.5}))
    assert life_training.read_back(tmp_path, 2.5)["holds"]
    assert not life_training.read_back(tmp_path, 2.5000001)["holds"]


def test_kept_units_are_counted(tmp_path):
    for name, units in (("old", {"a": [0, 0], "b": [0, 0]}), ("new", {"a": [0, 0], "b": [2, 0]})):
        (tmp_path / name).mkdir()
        content = {"units": {key: {"s": s, "phi": phi} for key, (s, phi) in units.items()}}
        (tmp_path / name / "units.json").write_text(json.dumps(content))
    kept = life_training.kept_of(tmp_path / "old", tmp_path / "new")
    assert kept == {"kept": 1, "with s within a factor of 2": 1}


def test_the_page_says_what_does_not_hold_and_what_did_not_pay():
    lost = life_report.check("units before the first call", "0 of 80", False)
    rows = {"grow": a_row(cpu_s=3.0, checks=[lost], instead={"other": {"loss": 0.75}})}
    text = life_report.page("A life", rows, rows)
    assert life_report.failed(rows) == ["grow: units before the first call: 0 of 80"]
    assert "| 0 of 80 | NO" in text
    assert text.count("-0.250") == 2


def test_what_a_step_warns_of_is_in_the_report(tmp_path):
    def step(folder):
        warnings.warn("97.2% went to zero", stacklevel=1)
        return a_row()

    rows = {"grow": life_report.finished(tmp_path / "grow", step)}
    assert "- grow: 97.2% went to zero" in life_report.page("A life", rows, rows)


def test_a_folder_of_another_life_is_refused(tmp_path):
    life_report.claim(tmp_path / "life", {"steps": 4})
    life_report.claim(tmp_path / "life", {"steps": 4})
    with pytest.raises(ValueError, match="whose steps is 4, and this one's is 5"):
        life_report.claim(tmp_path / "life", {"steps": 5})
    with pytest.raises(ValueError, match="holds something else than a life"):
        life_report.claim(tmp_path, {"steps": 4})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps is 0; expected at least 1"),
        (["--width", "24"], "--width is 24; expected at least 16 and a multiple of 16"),
        (["--data", "none.txt"], "none.txt does not exist"),
    ],
)
def test_bad_arguments_are_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["life", *arguments, "--out", str(tmp_path / "life")])
    with pytest.raises(SystemExit) as error:
        life_of_a_model.main()
    assert error.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "life").exists()


def test_a_new_model_is_scaled_as_its_life_says(life):
    assert us.summary(life.new(1)).recipe == life_training.RECIPE
    with pytest.raises(ValueError, match="has no units"):
        us.summary(replace(life, recipe=None).new(1))
