"""What a command prints on stdout for people."""

from typing import Any

WIDTH_OF_A_FILE = 120


def show(*things: Any) -> None:
    """Print tables and lines, as wide as the terminal; a pipe or a file gets 120 columns."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    for thing in things:
        console.print(thing, soft_wrap=isinstance(thing, str))
