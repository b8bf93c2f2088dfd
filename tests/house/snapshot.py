"""What others rely on: public names and command-line flags, as data that a change must touch.

`python tests/house/snapshot.py` rewrites both files after a change that was meant.
"""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parent
REWRITE = "python tests/house/snapshot.py"


def public_api() -> dict[str, list[str]]:
    """The public names of the package and of each of its rooms."""
    facade = importlib.import_module("unitscale")
    rooms = {name: getattr(facade, name) for name in facade.__all__ if not name.startswith("__")}
    api = {"unitscale": sorted(facade.__all__)}
    for room in rooms.values():
        if hasattr(room, "__path__"):  # a package, not a function
            api[room.__name__] = sorted(room.__all__)
    return api


def cli_flags() -> dict[str, list[str]]:
    """The options and arguments of every command, and of the commands in a group of them."""
    import typer

    from unitscale.cli import app

    root = typer.main.get_command(app)
    return {
        name: sorted({flag for parameter in command.params for flag in _spellings(parameter)})
        for name, command in _commands("unitscale", root)
    }


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for own, sub in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {own}", sub)


def _spellings(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


SNAPSHOTS: dict[str, Callable[[], dict[str, list[str]]]] = {
    "public_api": public_api,
    "cli_flags": cli_flags,
}


def read(name: str) -> dict[str, list[str]]:
    """What was last agreed on."""
    return json.loads((HOUSE / f"{name}.json").read_text())


def differences(agreed: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """One line per name that came or went, and where."""
    return [
        f"{where}: {sign} {name}"
        for where in sorted({*agreed, *now})
        for sign, name in [
            *(("-", n) for n in agreed.get(where, []) if n not in now.get(where, [])),
            *(("+", n) for n in now.get(where, []) if n not in agreed.get(where, [])),
        ]
    ]


if __name__ == "__main__":
    for name, take in SNAPSHOTS.items():
        text = json.dumps(take(), indent=2, sort_keys=True) + "\n"
        (HOUSE / f"{name}.json").write_text(text)
        print(f"wrote {HOUSE / name}.json")
