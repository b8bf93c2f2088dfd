"""The help of every command, as somebody reads it who has not read the others."""

from collections.abc import Iterator

import pytest
import typer.main

from unitscale.cli import app


def commands(group: object, path: str = "unitscale") -> Iterator[tuple[str, object]]:
    """Every command with its path."""
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        own = f"{path} {name}"
        yield from commands(command, own) if hasattr(command, "commands") else [(own, command)]


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_is_a_sentence_of_its_own(path: str) -> None:
    """`Of the noise.` says nothing to who does not know that the option is a seed."""
    command = COMMANDS[path]
    for parameter in command.params:  # type: ignore[attr-defined]
        said = parameter.help or ""
        where = f"{path} {parameter.name}: {said!r}"
        assert len(said.split()) >= 2, where
        assert said[0].isupper() or said.split()[0].strip("`,").islower(), where
        assert not said.startswith("Of "), where


def test_what_a_run_takes_is_in_the_help_of_compress() -> None:
    target = next(p for p in COMMANDS["unitscale compress"].params if p.name == "target")  # type: ignore[attr-defined]
    assert "For a run width=, depth= or both" in target.help
    assert "For a folder of `save_pretrained` also a share" in target.help
