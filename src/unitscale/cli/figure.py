"""`unitscale figure`: figures for papers."""

import json as json_module
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from unitscale.cli.exit import code_of, fail
from unitscale.cli.option import Json
from unitscale.cli.output import show

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
            help="Folder of a recorded run or of a comparison, or a numerics.jsonl. Not for snr.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="PNG, SVG or PDF to write. Default: KIND.png.", show_default=False),
    ] = None,
    formats: Annotated[
        str, typer.Option(help="For snr alone: formats, with commas between them.")
    ] = FORMATS,
    step: Annotated[
        int | None,
        typer.Option(help="Recorded step; not for snr. Default: the last.", show_default=False),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="N|NAMES",
            help="Name points of depth or exponents: the N worst, or tensors, with commas between "
            "them; * stands for anything, as in `--label '*.attn.*'`.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Draw one figure; of a comparison one for each of its recorded runs, with the run's name."""
    path = out or Path(f"{kind.value}.png")
    try:
        if kind is Kind.SNR:
            draw_snr(split(formats), path)
            drawn = [{"figure": str(path), "kind": kind.value}]
        else:
            drawn = draw_recordings(kind, source, path, step, label)
    except (OSError, ValueError) as error:
        fail(str(error), code=code_of(error))
    if json:
        print(json_module.dumps(drawn, indent=2))
        return
    show(*(str(one["figure"]) for one in drawn))


def split(text: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def draw_recordings(
    kind: Kind, source: Path | None, path: Path, step: int | None, label: str | None
) -> list[dict[str, Any]]:
    """Draw what was recorded; what was drawn where, as JSON has it.

    Raises:
        ValueError: no source; no such step, tensor or format of a picture.
        FileNotFoundError: no recording there.
    """
    from unitscale.report.figure import draw_depth, draw_exponents
    from unitscale.report.folder import find_recordings

    if source is None:
        raise ValueError("this figure needs a RUN_DIR; record a run with --set record_every=50")
    is_number = label is not None and label.strip().lstrip("-").isdecimal()
    labels = None if label is None else int(label) if is_number else split(label)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write")
    found = find_recordings(source)
    draw = draw_depth if kind is Kind.DEPTH else draw_exponents
    drawn = []
    for name, recording in found.items():
        own = path if len(found) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
        named = draw(recording, own, step=step, label=labels)
        drawn.append(
            {
                "figure": str(own),
                "kind": kind.value,
                "run": name,
                "step": recording.steps[-1] if step is None else step,
                "labeled": named,
            }
        )
    return drawn


def draw_snr(names: list[str], path: Path) -> None:
    """Measure and draw each format, an octave beyond its range at either end."""
    from unitscale.formats import parse
    from unitscale.numerics.snr import expected_snr, measure_snr
    from unitscale.report.figure import draw_snr

    if not names:
        raise ValueError("--formats names no format; `unitscale formats` lists them")
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
