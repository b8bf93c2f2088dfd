"""The coverage script on its smallest models: checks, the cache, the page and its faults."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from coverage_checks import STEPS, check, is_silent, largest, run
from coverage_models import ENTRIES
from coverage_page import write_page
from torch import nn
from zoo_entry import Entry
from zoo_models import ENTRIES as ZOO

import unitscale as us
from unitscale.data import open_corpus

PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
SMALL = ("dataclass out", "frozen layer")


@pytest.fixture(scope="module")
def script():
    """The script by its path: another package has its name."""
    spec = importlib.util.spec_from_file_location("coverage_script", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text():
    return open_corpus().train


def test_there_are_many_models_and_none_is_in_the_zoo() -> None:
    assert len(ENTRIES) >= 40
    assert not ENTRIES.keys() & ZOO.keys()
    families = {entry.family for entry in ENTRIES.values()}
    assert families >= {"decoder", "experts", "encoder", "vision", "audio", "layer", "code"}


QUICK = [entry for entry in ENTRIES.values() if entry.family in ("layer", "code")]


@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: entry.name)
def test_a_batch_is_that_of_its_step(entry: Entry, text) -> None:
    first, again, other = (entry.batch(text, step) for step in (5, 5, -1))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_is_covered_and_the_same(name: str, text) -> None:
    row = check(ENTRIES[name], text)
    assert row["in_force"]
    assert not row["silent"]
    assert (row["coverage"], row["known"], row["against"]) == (1, 1, "plain")
    assert [row[key] for key in ("loss", "gradients", "parameters")] == [0] * 3
    assert row["products"] >= 2
    assert (row["unrounded"], row["plain"], row["warnings"]) == ([], {}, [])


UNCOVERED = {
    "nn.GRU beside Linears": "torch.compile does not capture nn.GRU",
    "nn.GRU, allow_rnn": "torch runs all steps of a recurrent layer in one op",
    "autograd.Function as product": "runs as it is",
    "vmap over stacked weights": "inside vmap",
    "a raw product under torch.compiler.disable": "could not be captured",
}


@pytest.mark.parametrize(("name", "why"), UNCOVERED.items(), ids=UNCOVERED)
def test_what_is_not_covered_is_told(name: str, why: str, text) -> None:
    row = check(ENTRIES[name], text)
    assert row["coverage"] < 1
    assert not row["silent"]
    reasons = [*(found["why"] for found in row["unrounded"]), *row["plain"].values()]
    assert any(why in reason for reason in reasons)
    assert bool(row["plain"]) == bool(row["warnings"])


def test_silence_is_seen() -> None:
    model = us.unit_scale(nn.Linear(4, 4), "fp8", inner="eager")
    model(torch.randn(8, 4))
    summary = us.summary(model)
    assert not is_silent(summary, 128, 128)
    assert is_silent(summary, 126, 128)  # a product of which the summary does not know
    told = dataclasses.replace(summary, breaks=("a call of .item()",))
    assert not is_silent(told, 126, 128)  # it says that there may be some between two graphs
    assert str(told).startswith("Linear, recipe fp8: 100.0% of known multiply-adds rounded")
    us.set_recipe(model, "fp8")
    assert is_silent(us.summary(model), 0, 0)  # nothing has run, nothing is told


def test_a_model_that_is_not_the_same_is_seen(text) -> None:
    plain = run(ENTRIES[SMALL[0]], text, lambda model: model)
    other = run(ENTRIES[SMALL[0]], text, lambda model: us.unit_scale(model, "fp8", inner="eager"))
    assert len(plain["losses"]) == STEPS
    assert largest(plain["gradients"], plain["gradients"]) == 0
    assert largest(plain["gradients"], other["gradients"]) > 0
    assert largest({"w": torch.ones(1)}, {"w": None}) == 1


ROW = {
    "family": "layer",
    "loss": 0.0,
    "gradients": 0.0,
    "parameters": 0.0,
    "against": "plain",
    "in_force": True,
    "coverage": 1.0,
    "products": 2,
    "units": 7,
    "unrounded": [],
    "plain": {},
    "known": 1.0,
    "breaks": [],
    "silent": False,
}


def test_a_run_goes_on_from_its_cache(script, tmp_path, monkeypatch) -> None:
    ran = []

    def run_apart(names):
        for name in names:
            ran.append(name)
            yield name, ROW if name == SMALL[0] else {"error": "no"}

    monkeypatch.setattr(script, "run_apart", run_apart)
    cache, page = tmp_path / "runs" / "coverage.jsonl", tmp_path / "coverage.md"
    command = [*SMALL, "--cache", str(cache), "--page", str(page)]
    assert script.main(command) == 1
    with cache.open("a") as file:
        file.write('{"model": "cut sho')
    assert script.main(command) == 1
    assert ran == list(SMALL)
    assert script.main([*command, "--fresh"]) == 1
    assert ran == list(SMALL) * 2
    assert script.main([SMALL[0], *command[2:]]) == 0
    assert "| frozen layer | fails | no |" in page.read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_page_has_the_reasons(tmp_path) -> None:
    why = {"why": "it says | why", "products": 4, "names": ["a", "b", "c"], "macs": 9}
    plain = {f"layer{i}": "not captured." for i in range(5)}
    rows = {
        "whole": ROW | {"against": "compiled"},
        "half": ROW | {"coverage": 0.99999, "unrounded": [why], "plain": plain, "loss": 2e-7},
        "silent": ROW | {"known": 0.5, "silent": True, "in_force": False},
        "broken": ROW | {"known": 0.75, "breaks": ["a call of .item()"]},
    }
    write_page(tmp_path / "coverage.md", list(rows), rows)
    page = (tmp_path / "coverage.md").read_text()
    assert "| whole | layer | yes | 1 | 2 | 7 | 1 | = compiled |" in page
    assert "| half | layer | yes | 0.999 | 2 | 7 | 1 | loss 2e-07 |" in page
    assert "| silent | layer | no | 1 | 2 | 7 | 0.500 | = |" in page
    assert "- half: 4 products (`a`, `b`, `c` and more): it says | why." in page
    assert "- half: `layer0`, `layer1`, `layer2` and 2 more: not captured." in page
    assert "- silent: **something is in full precision without a word**." in page
    assert "- broken: 25.0% of torch's count: products of two activations in code between" in page
    assert "Of 4 models 4 ran" in page


CHILD = """
import json, sys
for name in sys.argv[1:]:
    if name == "bad":
        sys.exit(9)
    print("noise")
    print(json.dumps({"found": name}))
"""


def test_a_process_that_ends_is_a_result_and_the_next_model_runs(script, monkeypatch) -> None:
    lines_of = script.lines_of

    def from_child(command):
        return lines_of([sys.executable, "-c", CHILD, *command[3:]])

    monkeypatch.setattr(script, "lines_of", from_child)
    found = dict(script.run_apart(["one", "bad", "two"]))
    assert found["one"] == {"found": "one"}
    assert found["two"] == {"found": "two"}
    assert "its process ended" in found["bad"]["error"]


def test_an_exception_is_a_result(script, capsys) -> None:
    script.run_here(["no such model"])
    assert json.loads(capsys.readouterr().out) == {"error": "KeyError: 'no such model'"}


def test_bad_arguments_are_named(script, capsys) -> None:
    assert script.main(["Gorilla"]) == 2
    assert "Gorilla" in capsys.readouterr().err
