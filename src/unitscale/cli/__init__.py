"""The command line: arguments, progress, exit codes. Heavy imports wait inside the commands."""

from unitscale.cli.app import app, main

__all__ = ["app", "main"]
