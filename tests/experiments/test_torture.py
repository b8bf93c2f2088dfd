"""A short form of the torture: a few damaged files and command lines; whole with `-m slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import torture
from command_lines import command_lines, make_surroundings
from house.tree import REPOSITORY
from train.tiny import text_corpus
from unitscale.train import train


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """The script in a process of its own, since it forks; its exit code and table."""
    line = [sys.executable, REPOSITORY / "experiments" / "torture.py", *arguments]
    done = subprocess.run([*line, "--folder", folder], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_few_cases_have_no_fault_and_are_kept(tmp_path: Path) -> None:
    code, out = run(tmp_path, "damage", "fuzz", "--stride", "301", "--fuzzed", "4")
    assert code == 0, out
    records = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert {record["case"].split()[0] for record in records} == {"damage", "fuzz"}
    assert len(records) > 30
    said = " ".join(str(record.get("said")) for record in records)
    assert "is damaged" in said
    assert "| fuzz | 4 | 0 |" in out


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path) -> None:
    code, out = run(tmp_path, "kill", "--kills", "1")
    assert code == 0, out
    assert out.count("| 1 | 0 |") == len(torture.RUNS) * len(torture.SIGNALS)


def test_runs_that_differ_are_told_apart(tmp_path: Path) -> None:
    corpus = text_corpus(tmp_path)
    for name in "ab":
        train(torture.tiny_config(), corpus, tmp_path / name)
    one, two = (torture.contents(tmp_path / name) for name in "ab")
    assert torture.first_difference(one, two) is None  # their speeds aside
    assert one.keys() == {"checkpoint.safetensors", "config.json", "log.jsonl", "result.json"}
    two["log.jsonl"][2]["loss"] += 1e-9
    assert torture.first_difference(one, two) == "log.jsonl"
    bits, _ = one["checkpoint.safetensors"]
    bits[min(bits)][0] ^= 1
    assert torture.first_difference(one, two) == "checkpoint.safetensors"


@pytest.mark.parametrize(
    ("kind", "expected"), [("flip", b"a`c"), ("zero", b"a\0c"), ("newline", b"a\nc"), ("cut", b"a")]
)
def test_damage_is_of_one_byte_or_the_rest(kind: str, expected: bytes) -> None:
    place = 1  # b"b" with bit 1 turned over is a backquote
    found = torture.damaged(b"abc", place, kind)
    assert found == expected


def test_every_byte_of_a_text_is_a_place() -> None:
    assert torture.places(b"abc", "log.jsonl") == [0, 1, 2]


def test_a_command_line_is_decided_by_its_number(tmp_path: Path) -> None:
    surroundings = make_surroundings(tmp_path)
    lines = [command_lines(number, surroundings) for number in range(50)]
    assert lines == [command_lines(number, surroundings) for number in range(50)]
    assert len({tuple(line) for line in lines}) > 40


def test_a_fault_is_counted_and_run_again(tmp_path: Path) -> None:
    cache, calls = tmp_path / "cases.jsonl", []

    def case(fault: str | None) -> dict[str, str | None]:
        calls.append(fault)
        return {"fault": fault}

    for _ in range(2):
        cases = iter([("a b 1", lambda: case("bad")), ("a b 2", lambda: case(None))])
        outcomes = torture.run_cases(cases, cache)
    assert calls == ["bad", None, "bad"]
    assert "| a b | 2 | 1 |" in torture.table(outcomes)
