"""The command line: arguments, progress, exit codes. Heavy imports wait inside the commands."""

__all__ = ["app", "main"]

try:
    from unitscale.cli.app import app, main
except ModuleNotFoundError as error:
    MISSING = (error.name or "").partition(".")[0]
    if MISSING not in ("rich", "typer"):
        raise  # a package that the library itself needs

    def main() -> None:
        """Say how to install what the command line needs; exit code 1."""
        raise SystemExit(
            f"unitscale: the command line needs {MISSING}, which is not installed; run: "
            "pip install 'unitscale[cli]'"
        )
