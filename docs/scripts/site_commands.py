"""The page of the command line: what `--help` says of every command, as one page."""

from collections.abc import Iterator
from typing import Any

__all__ = ["page"]


def page() -> str:
    """Every command, its arguments and options."""
    import typer

    from unitscale.cli import app

    root = typer.main.get_command(app)
    parts = [
        "# Command line",
        "Made from the commands themselves. Exit codes: 0; 1 for what failed; 2 for a bad "
        "argument, with one line that says which. Every command takes `--help`.",
    ]
    for name, command in commands("unitscale", root):
        parts += describe(name, command)
    return "\n\n".join(parts) + "\n"


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and those below it."""
    yield name, command
    for own, sub in getattr(command, "commands", {}).items():
        yield from commands(f"{name} {own}", sub)


def describe(name: str, command: Any) -> Iterator[str]:
    """A heading, the help and a table."""
    yield f"## {name}"
    yield in_text(paragraphs(command.help or ""))
    rows = [row(parameter) for parameter in command.params if not hidden(parameter)]
    if rows:
        yield "\n".join(["| option | what it does | default |", "|---|---|---|", *rows])


def hidden(parameter: Any) -> bool:
    """Whether the help leaves it out."""
    return bool(getattr(parameter, "hidden", False)) or "--help" in parameter.opts


def row(parameter: Any) -> str:
    """An argument or option, as a row."""
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])
    text = in_text(" ".join((getattr(parameter, "help", None) or "").split())).replace("|", "\\|")
    default = parameter.default
    shown = getattr(parameter, "show_default", True)
    known = isinstance(default, str | int | float) and not isinstance(default, bool) and shown
    return f"| {names} | {text} | {f'`{default}`' if known and default != '' else ''} |"


def paragraphs(text: str) -> str:
    """Help as it is written, without the mark after which typer stops."""
    return text.partition("\f")[0].strip()


def in_text(text: str) -> str:
    """Help as Markdown: what looks like a tag or a star is none."""
    return text.replace("<", "&lt;").replace("*", "\\*")
