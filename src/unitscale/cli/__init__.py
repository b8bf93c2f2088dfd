"""The command line: arguments, progress, exit codes. Heavy imports wait inside the commands."""

TYPE_CHECKING = False  # type checkers take it for true

if TYPE_CHECKING:
    from typing import Any

    from unitscale.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; wrong usage is one line on stderr and exit code 2.

    Without the packages that the command line needs: how to install them, and exit code 1.
    """
    silence_interrupt()
    from unitscale.cli.exit import stopping_at_once

    with stopping_at_once():  # before anything is imported that takes time
        try:
            commands = load()
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in ("rich", "typer"):
                raise  # a package that the library itself needs
            raise SystemExit(
                f"unitscale: the command line needs {missing}, which is not installed; run: "
                "pip install 'unitscale[cli]'"
            ) from None
        commands.run()


def silence_interrupt() -> None:
    """Let Ctrl-C end the process without a word, until `stopping_at_once` gives it one.

    What that is made of takes time to import, and an interrupt there would print a traceback.
    """
    import signal

    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # not the main thread, which alone may choose
        return


def load() -> "Any":
    """The module of the commands. Importing it puts it where its `app` is to be."""
    from importlib import import_module

    module = import_module("unitscale.cli.app")
    globals()["app"] = module.app
    return module


def __getattr__(name: str) -> "Any":
    if name == "app":
        return load().app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
