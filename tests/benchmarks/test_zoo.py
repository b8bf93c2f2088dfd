"""The zoo on its two smallest models: checks, the cache and the page."""

import json
from dataclasses import replace

import pytest
import zoo
import zoo_checks
from zoo_entry import Entry
from zoo_models import ENTRIES
from zoo_page import KINDS, write_page

from unitscale.data import open_corpus

SMALL = ("gated convolutions", "denoising U-Net")
STEPS = 5  # 0, 1, 2 and 4 measure, so one step rounds


@pytest.fixture(scope="module")
def text():
    return open_corpus().train


def test_the_zoo_has_every_kind_of_animal() -> None:
    assert len(ENTRIES) >= 40
    families = {entry.family for entry in ENTRIES.values()}
    assert families >= {"decoder", "experts", "encoder", "encoder-decoder", "vision", "audio"}
    assert families >= {"state space", "vision and text", "torch"}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
def test_a_batch_is_that_of_its_step(entry: Entry, text) -> None:
    first, again, other = (entry.batch(text, step) for step in (5, 5, -1))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_passes(name: str, text) -> None:
    units = zoo_checks.run("units", ENTRIES[name], text, 0)
    assert units["graphs"] == 1
    assert all(share[1] == 1 for share in units["shares"].values())
    assert all(share[0] < 1 for share in units["shares"].values())
    exact = zoo_checks.run("exact", ENTRIES[name], text, 0)
    assert [exact[key] for key in ("loss", "gradients", "parameters", "evaluation")] == [0] * 4


def test_training_arms_differ_in_the_recipe_alone(text) -> None:
    entry = ENTRIES[SMALL[0]]
    runs = {arm: zoo_checks.run(arm, entry, text, STEPS) for arm in zoo.ARM_CHECKS}
    assert len({run["loss"] for run in runs.values()}) == len(runs)
    first = {arm: run["first_loss"] for arm, run in runs.items()}
    # The first step is one of the recipe: rounding moves its loss by less than another start does.
    by_rounding = [abs(first[name] - first["fp32"]) for name in ("fp8", "fp8-none")]
    assert 0 < min(by_rounding) <= max(by_rounding) < abs(first["fp32-again"] - first["fp32"])
    assert runs["fp8"]["products"] == 4


def test_exactness_sees_a_model_that_is_not_the_same(text) -> None:
    """Every second model that is built has other parameters: the check must say so."""
    entry, built = ENTRIES[SMALL[0]], []

    def build():
        built.append(entry.build())
        with zoo_checks.torch.no_grad():
            next(built[-1].parameters()).mul_(len(built))
        return built[-1]

    exact = zoo_checks.run("exact", replace(entry, build=build), text, 0)
    assert min(exact[key] for key in ("loss", "gradients", "parameters", "evaluation")) > 1e-4


def test_a_run_goes_on_from_its_cache(tmp_path, monkeypatch, capsys) -> None:
    ran = []

    def run_group(group, options):
        ran.extend(job.key for job in group)
        return {
            job.key: {"error": "no"} if job.model == SMALL[1] else RESULTS[job.check]
            for job in group
        }

    monkeypatch.setattr(zoo, "run_group", run_group)
    command = [*SMALL, "--checks", "units,exact", "--cache", str(tmp_path / "cache.jsonl")]
    command += ["--page", str(tmp_path / "zoo.md")]
    assert zoo.main(command) == 1
    assert ran == [f"{name} {check}" for name in SMALL for check in ("units", "exact")]
    with (tmp_path / "cache.jsonl").open("a") as file:
        file.write('{"key": "cut sho')
    assert zoo.main(command) == 1
    assert len(ran) == 4
    assert zoo.main([*command, "--fresh"]) == 1
    assert len(ran) == 8
    page = (tmp_path / "zoo.md").read_text()
    assert "| gated convolutions | 1 | 18 | 80 → 100 → 99.9 |" in page
    assert "| gated convolutions | = | 1.0e-07 | = | = |" in page
    assert "| denoising U-Net | fails |" in page


RESULTS = {
    "units": {
        "graphs": 1,
        "graph_breaks": ["a reason"],
        "tensors": 18,
        "shares": {kind: [0.8, 1.0] for kind in KINDS},
        "held_out": {kind: [0.8, 0.9999] for kind in KINDS},
        "kept_at_one": {"value is zero": 2},
        "zero_gradients": 1,
    },
    "exact": {"loss": 0.0, "gradients": 1e-7, "parameters": 0.0, "evaluation": 0.0},
}


def test_page_has_the_gaps_and_the_peer(tmp_path) -> None:
    run = {"loss": 2.0, "products": 4, "lossy": []}
    losses = {"fp32": 2.0, "fp32-again": 2.25, "fp8": 1.875, "fp8-none": 3.0}
    results = {f"{SMALL[0]} {arm} 9": run | {"loss": loss} for arm, loss in losses.items()}
    results[f"{SMALL[0]} peer"] = {"version": "9.9", "works": False, "reason": "TypeError: a | b"}
    write_page(tmp_path / "zoo.md", {SMALL[0]: ENTRIES[SMALL[0]]}, results, 9)
    page = (tmp_path / "zoo.md").read_text()
    assert "| 4 | 2.000 | 2.250 | 1.875 | -0.125 | 3.000 | +1.000 | 0 (0) |" in page
    assert "| gated convolutions | no | - | - | - | TypeError: a / b |" in page
    assert "What is captured" not in page


def test_a_crash_is_a_result(tmp_path, monkeypatch) -> None:
    options = zoo.parse(["--cache", str(tmp_path / "cache.jsonl")])
    jobs = [zoo.Job(model="no such model", check=check) for check in ("units", "exact")]
    found = zoo.run_group(jobs, options)
    assert json.dumps(found) == json.dumps(
        {job.key: {"error": "KeyError: 'no such model'"} for job in jobs}
    )


def test_bad_arguments_are_named(capsys) -> None:
    assert zoo.main(["Gorilla"]) == 2
    assert "Gorilla" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        zoo.parse(["--checks", "units,speed"])
    assert "speed" in capsys.readouterr().err
