"""The README does what it says."""

import re

import pytest

from house import snapshot
from house.tree import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def missing_targets(text, makefile):
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    return [name for name in re.findall(r"\bmake ([a-z][\w-]*)", text) if name not in targets]


def unknown_flags(text, flags):
    """Commands of the command line, in shell blocks, that it does not have, and their options."""
    unknown = []
    for line in "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines():
        if match := re.match(r"(?:\S*/)?(unitscale [\w-]+)(?: ([\w-]+))?", line):
            nested = f"{match[1]} {match[2]}"
            command = nested if nested in flags else match[1]
            known = flags.get(command)
            used = re.findall(r"(?<=\s)--[\w-]+", line)
            if known is None:
                unknown.append(command)
            else:
                unknown += [f"{command} {flag}" for flag in used if flag not in known]
    return unknown


@pytest.mark.parametrize("index", range(len(blocks(README, "python"))))
def test_python_block_runs(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(README, "python")[index], f"README block {index}", "exec"), {})


def test_readme_has_blocks_to_run():
    assert blocks(README, "python")
    assert blocks(README, "sh")


def test_make_targets_exist():
    assert missing_targets(README, MAKEFILE) == []
    assert missing_targets("run `make dmeo`, then make test", MAKEFILE) == ["dmeo"]


def test_commands_and_flags_exist():
    assert unknown_flags(README, snapshot.read("cli_flags")) == []
    text = "```sh\nunitscale compare --stpes 3 \\\n  --out x\n.venv/bin/unitscale comapre\n```\n"
    flags = {"unitscale compare": ["--steps", "--out"]}
    assert unknown_flags(text, flags) == ["unitscale compare --stpes", "unitscale comapre"]
    text = "```sh\nunitscale laws plan --flops 1 --lwa x\n```\n"
    flags = {"unitscale laws": [], "unitscale laws plan": ["--flops"]}
    assert unknown_flags(text, flags) == ["unitscale laws plan --lwa"]
