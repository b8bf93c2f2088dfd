"""The `unitscale` command and its exit codes: 0 done, 1 failed, 2 wrong arguments, 130 stopped."""

import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from unitscale.cli import setting
from unitscale.cli.analyse import analyse
from unitscale.cli.compare import compare
from unitscale.cli.compress import compress
from unitscale.cli.doctor import doctor
from unitscale.cli.exit import FAILED, WRONG_ARGUMENTS, fail, is_of_the_machine
from unitscale.cli.export import export
from unitscale.cli.figure import figure
from unitscale.cli.formats import formats
from unitscale.cli.grow import grow
from unitscale.cli.laws import laws
from unitscale.cli.plan_memory import plan_memory
from unitscale.cli.quantize import quantize
from unitscale.cli.recipes import recipes
from unitscale.cli.report import report
from unitscale.cli.sweep import sweep
from unitscale.cli.train import train

# typer exports one of its usage errors, but not the class that they have in common.
USAGE_ERROR: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="unitscale",
    help="Train PyTorch models in FP16 and FP8 with static, unit-scaled tensors.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command(epilog=setting.EPILOG)(compare)
app.command(epilog=setting.EPILOG)(train)
app.command()(sweep)
app.command()(analyse)
app.command()(report)
app.command()(figure)
app.command()(export)
app.command()(grow)
app.command()(quantize)
app.command()(compress)
app.command()(formats)
app.command()(recipes)
app.command()(doctor)
app.command()(plan_memory)
app.add_typer(laws)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train PyTorch models in FP16 and FP8 with static, unit-scaled tensors."""
    if version:
        from unitscale import __version__

        typer.echo(__version__)
        raise typer.Exit


def run() -> None:
    """Run the command; wrong usage is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± gets a question mark
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except USAGE_ERROR as error:
        fail(error.format_message(), code=WRONG_ARGUMENTS)
    except BrokenPipeError:  # who read our output has closed it, as `| head` does
        drop_output()
        sys.exit(FAILED)
    except OSError as error:
        if not is_of_the_machine(error):
            raise
        drop_output()  # stdout may be a file on that disk
        fail(str(error), code=FAILED)


def drop_output() -> None:
    """Let go of what is left to be flushed at the end, where nobody or nothing takes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
