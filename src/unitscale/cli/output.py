"""What a command prints on stdout for people."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH_OF_A_FILE = 120


def console_of() -> Any:
    """The console of stdout, with the width that everything printed has."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)


def fits(rows: Sequence[Mapping[str, Any]], first: int) -> bool:
    """Whether a table of these rows has room for all titles and cells, but those of its first
    column, which may be cut to so many characters."""
    names = list(rows[0])
    needed = [max(len(str(row[name])) for row in rows) for name in names]
    needed = [max(len(name), cell) for name, cell in zip(names, needed, strict=True)]
    needed[0] = min(needed[0], first)
    return sum(needed) + 2 * (len(names) - 1) <= console_of().width


def show(*things: Any) -> None:
    """Print tables and lines, as wide as the terminal; a pipe or a file gets 120 columns."""
    console = console_of()
    for thing in things:
        console.print(thing, soft_wrap=isinstance(thing, str))


def train_on(command: Sequence[str], text: Path | None) -> list[str]:
    """The lines that say how a new run is trained on.

    Args:
        text: the file that the command reads, if any.
    """
    lines = [shlex.join(command)]
    if text is not None and not text.is_file():
        lines.append(f"(the run's {text} was not found here: give its path as --data)")
    return lines
