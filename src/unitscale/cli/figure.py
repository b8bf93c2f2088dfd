"""`unitscale figure`: figures for papers."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unitscale.cli.exit import WRONG_ARGUMENTS, fail
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.report import Recording

FORMATS = "E4M3FN,E5M2,FP16,BF16"


class Kind(StrEnum):
    """What to draw."""

    EXPONENTS = "exponents"
    SNR = "snr"
    DEPTH = "depth"


def figure(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="exponents: histograms of all tensors; depth: their scale in the order of the "
            "model; snr: signal to noise of a format against scale."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN_DIR]",
            help="A recorded run's folder, or its numerics.jsonl. Not for snr.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="PNG, SVG or PDF to write. Default: KIND.png.", show_default=False),
    ] = None,
    formats: Annotated[
        str, typer.Option(help="Formats of snr, with commas between them.")
    ] = FORMATS,
    step: Annotated[
        int | None,
        typer.Option(help="Recorded step. Default: the last.", show_default=False),
    ] = None,
) -> None:
    """Draw one figure."""
    path = out or Path(f"{kind.value}.png")
    try:
        if kind is Kind.SNR:
            draw_snr([name.strip() for name in formats.split(",") if name.strip()], path)
        else:
            from unitscale.report.figure import draw_depth, draw_exponents

            draw = draw_depth if kind is Kind.DEPTH else draw_exponents
            draw(open_recording(source), path, step=step)
    except (OSError, ValueError) as error:
        fail(str(error), code=WRONG_ARGUMENTS)
    show(str(path))


def open_recording(source: Path | None) -> "Recording":
    """The recording in a file, or in a run's folder.

    Raises:
        ValueError: no source.
        FileNotFoundError: no recording there.
    """
    from unitscale.report import read_recording
    from unitscale.report.folder import RECORDING

    if source is None:
        raise ValueError("this figure needs a RUN_DIR; record a run with --set record_every=50")
    path = source / RECORDING if source.is_dir() else source
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; record a run with --set record_every=50")
    return read_recording(path)


def draw_snr(names: list[str], path: Path) -> None:
    """Measure and draw each format, an octave beyond its range at either end."""
    from unitscale.formats import parse
    from unitscale.numerics.snr import expected_snr, measure_snr
    from unitscale.report.figure import draw_snr

    measured, expected = {}, {}
    for name in names:
        fmt = parse(name)
        low = max(fmt.min_exponent - fmt.mantissa_bits - 2, -40)
        high = min(fmt.max_exponent + 3, 40)
        coarse = [low + i / 2 for i in range(2 * (high - low) + 1)]
        fine = [low + i / 8 for i in range(8 * (high - low) + 1)]
        measured[fmt.name] = list(zip(coarse, measure_snr(fmt, coarse), strict=True))
        expected[fmt.name] = [(k, expected_snr(fmt, k)) for k in fine]
    draw_snr(measured, expected, path)
