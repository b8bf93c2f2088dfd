"""`unitscale quantize`: a finished model in FP8, INT8 or a block format, as a folder to serve."""

import json as json_module
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from unitscale.cli import option
from unitscale.cli.exit import FAILED, checking_arguments, fail, running
from unitscale.cli.output import show
from unitscale.cli.progress import Bar, WithBar

if TYPE_CHECKING:
    from unitscale.deploy.description import Format
    from unitscale.deploy.distance import Metric
    from unitscale.deploy.histogram import Clip

BATCH = 8

SAMPLES, LENGTH = 64, 128
"""Lines of a text that are read, and tokens that are kept of a line, unless options say so."""


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY|FOLDER",
            help="A function that gives `model`, or `model, inputs` (also as FILE.py:FACTORY); a "
            "folder of a model of transformers, or of `unitscale train`.",
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            help="fp8, fp8-tensor, fp8-dynamic, fp8-weight, fp8-e5m2, int8 (w8a8), int8-fp8, "
            "mxfp8, mxfp4, nvfp4 and so on, or a training recipe."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=option.given_path, metavar="DIR", help="Folder to write: new, or empty."
        ),
    ],
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|MODULE:NAME",
            help="Text, a sample a line (read by the folder's tokenizer, or as bytes for a run); "
            "or batches, or a function that gives them. Default: the inputs of FACTORY.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="With text: lines to calibrate on. Default: 64, or all where there are fewer.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="With text: tokens that are kept of a line. Default: 128, or as many as the model "
            "takes at once (a run: as it was trained on) where these are fewer.",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        str, typer.Option(help="Where inputs saturate: amax, percentile or mse.")
    ] = "amax",
    percentile: Annotated[
        float, typer.Option(help="With --clip percentile: which one of the magnitudes, in percent.")
    ] = 99.99,
    power_of_two: Annotated[
        bool, typer.Option("--power-of-two", help="Scales that BF16 holds exactly.")
    ] = False,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Modules to keep in full precision, by path, as 'layers.0.*'. Repeatable.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="Largest loss by --metric: the layers that lose most are put back into full "
            "precision until it is met. It needs calibration. Default: all stay quantized.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="With --target or --sensitivity: cosine (1 - cosine) or kl.")
    ] = "cosine",
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also print the loss of each layer alone.")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            help="compressed-tensors, modelopt or safetensors. Default: the first for a model of "
            "transformers, the last for others.",
            show_default=False,
        ),
    ] = None,
    differences: Annotated[
        str,
        typer.Option(
            help="Where a server would compute something else: refuse to export, or report it and "
            "export."
        ),
    ] = "refuse",
    json: option.Json = False,
) -> None:
    """Quantize a finished model, and write it: weights of one byte, calibrated scales or units.

    Softmax, GELU, norms, embeddings, heads and routers keep full precision. --target puts the most
    sensitive layers back.
    """
    with ExitStack() as held:
        with checking_arguments():
            from unitscale.deploy.description import check_format
            from unitscale.deploy.export import check_folder
            from unitscale.deploy.histogram import check_clip
            from unitscale.deploy.scheme import scheme_of

            scheme_of(recipe)
            check_clip(clip, percentile)
            if format is not None:
                check_format(format)
            check_folder(out)
            is_text = calibration_data is not None and Path(model).is_dir()
            if is_text and Path(str(calibration_data)).is_dir():
                raise ValueError(
                    f"--calibration-data {calibration_data} is a folder; expected a text file"
                )
            for flag, count in (("--samples", samples), ("--length", length)):
                if count is not None and count < 1:
                    raise ValueError(f"{flag} is {count}; expected 1 or more")
                if count is not None and not is_text:
                    raise ValueError(
                        f"{flag} is of a text: a folder's, that --calibration-data names; leave "
                        f"{flag} out"
                    )
        held.enter_context(running())
        held.enter_context(checking_arguments())
        held.enter_context(naming_flags())
        subject, batches, tokenizer = subject_of(
            model, calibration_data, samples or SAMPLES, length
        )
        from unitscale import deploy
        from unitscale.deploy.pretrained import is_pretrained

        options: dict[str, Any] = {
            "clip": cast("Clip", clip),
            "percentile": percentile,
            "power_of_two": power_of_two,
            "skip": tuple(skip or ()),
            "metric": cast("Metric", metric),
        }
        with Stages() as stages:
            table = None
            if sensitivity:
                table = deploy.sensitivity(
                    subject, recipe, batches or (), progress=stages.show, **options
                )
            deploy.quantize(
                subject, recipe, batches, target=target, progress=stages.show, **options
            )
        found = deploy.quantization(subject)
        inner = any(is_pretrained(module) for module in subject.modules())
        chosen = format or ("compressed-tensors" if inner else "safetensors")
        done = deploy.export(
            subject,
            out,
            cast("Format", chosen),
            tokenizer=tokenizer,
            differences=cast(Literal["refuse", "report"], differences),
        )
    if json:
        row = found.to_dict() | {
            "folder": str(done.folder),
            "format": done.format,
            "differences": done.differences,
            "sensitivity": None if table is None else [vars(row) for row in table.rows],
        }
        print(json_module.dumps(row, indent=2))
        return
    show(*([] if table is None else [str(table)]), str(found), str(done))


FLAGS = {
    "pass calibration=batches": "give --calibration-data",
    "take differences='report'": "give --differences report",
}
"""What errors of `deploy.quantize` ask for, as it is called here."""


@contextmanager
def naming_flags() -> Iterator[None]:
    """Have errors name the flag in the place of the argument of Python."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for argument, flag in FLAGS.items():
            text = text.replace(argument, flag)
        if text == str(error):
            raise
        raise ValueError(text) from error


def subject_of(
    name: str, data: str | None, samples: int, length: int | None
) -> tuple[Any, list[Any] | None, Path | None]:
    """The model, what it is calibrated on, and the folder of its tokenizer.

    Raises:
        ValueError: there is no such model, or no such data.
    """
    folder = Path(name)
    if not folder.is_dir():
        from unitscale.models.existing import find_factory, is_existing

        if not is_existing(name):
            raise ValueError(
                f"{name!r} is neither a folder nor a model; expected a folder of transformers or "
                "of `unitscale train`, MODULE:FACTORY or FILE.py:FACTORY"
            )
        factory = find_factory(name)
        from unitscale.models.seeded import seed_all

        seed_all(0)  # a factory that draws its weights gives the same ones each time
        try:
            made = factory()
        except Exception as error:
            fail(f"{name} failed: {type(error).__name__}: {error}", code=FAILED)
        model, *rest = made if isinstance(made, tuple) else (made,)
        return model, given_batches(data, rest[0] if rest else None), None
    if is_of_transformers(folder):
        return pretrained(folder, data, samples, length)
    from unitscale.models.positions import positions_of
    from unitscale.train.trained import run_of, trained_model

    lines = None if data is None else lines_of(data, samples)
    model, _ = trained_model(folder)
    batches = None
    if lines is not None:
        check_length(length, positions_of(model), folder)
        kept = length or min(LENGTH, run_of(folder)[0].sequence_length)
        batches = byte_batches(lines, kept)
        from unitscale.units import unscale
        from unitscale.units.forward import session_of

        if session_of(model) is not None:  # calibrated scales take the place of its units
            unscale(model)
        model = logits_of(model)
    return model, batches, None


def logits_of(model: Any) -> Any:
    """The part of a run's model that gives logits: training wraps a loss around others' models."""
    from unitscale.models.next_byte import NextByte

    return model.model if isinstance(model, NextByte) else model


def config_of(folder: Path) -> dict[str, Any]:
    """What a folder's config.json holds; nothing where it cannot be read."""
    try:
        content = json_module.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_of_transformers(folder: Path) -> bool:
    """Whether a folder has the configuration of a model of transformers; a run's is another."""
    return "model_type" in config_of(folder)


def given_batches(data: str | None, inputs: Any) -> list[Any] | None:
    """The batches of a name, or the inputs that a factory gives, as one batch."""
    if data is None:
        return None if inputs is None else [inputs]
    from unitscale.models.existing import import_attribute

    if ":" not in data:
        raise ValueError(
            f"--calibration-data is {data!r}; of a FACTORY it is MODULE:NAME or FILE.py:NAME, for "
            "batches or a function that gives them"
        )
    found = import_attribute(data, "list of batches")
    made = found() if callable(found) else found
    return list(made)


def lines_of(data: str, samples: int) -> list[str]:
    """The first lines of a text that hold something.

    Raises:
        ValueError: there is none. OSError: it cannot be read.
    """
    text = Path(data).read_text(encoding="utf-8", errors="replace")
    found = [line for line in text.splitlines() if line.strip()][:samples]
    if not found:
        raise ValueError(f"--calibration-data {data} has no line of text")
    return found


def check_length(length: int | None, most: int | None, folder: Path) -> None:
    """Raise ValueError for more tokens than the model in a folder takes at once."""
    if length is not None and most is not None and length > most:
        raise ValueError(
            f"--length is {length}, and the model of {folder} takes {most} tokens at once; use "
            f"--length {most} or less, or leave it out"
        )


def byte_batches(lines: list[str], length: int) -> list[Any]:
    """Lines as bytes, one sample a batch: they differ in length."""
    import torch

    return [torch.tensor([list(line.encode("utf-8")[:length])]) for line in lines]


def pretrained(
    folder: Path, data: str | None, samples: int, length: int | None
) -> tuple[Any, list[Any] | None, Path | None]:
    """A model of transformers, and lines of text as its tokenizer reads them."""
    from unitscale.anatomy.folder import loaded, transformers_there

    transformers_there("quantize")
    model = loaded(folder, config_of(folder)).eval()
    has_tokenizer = any(folder.glob("*tokenizer*")) or any(folder.glob("vocab.*"))
    if data is None:
        return model, None, folder if has_tokenizer else None
    if not has_tokenizer:
        raise ValueError(f"{folder} has no tokenizer to read {data} with; put its files there")
    from transformers import AutoTokenizer

    from unitscale.models.positions import positions_of

    lines = lines_of(data, samples)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # A tokenizer without a limit says 10^30; RoBERTa's limit is two below its positions.
    most = min(tokenizer.model_max_length, positions_of(model) or tokenizer.model_max_length)
    check_length(length, most, folder)
    if tokenizer.pad_token is None:
        parts = [[line] for line in lines]
    else:
        parts = [lines[start : start + BATCH] for start in range(0, len(lines), BATCH)]
    batches = [
        dict(
            tokenizer(
                part,
                padding=len(part) > 1,
                truncation=True,
                max_length=length or min(LENGTH, most),
                return_tensors="pt",
            )
        )
        for part in parts
    ]
    return model, batches, folder


class Stages(WithBar):
    """The progress of each stage: a bar on a terminal, a line at its end elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn())
        self.bar = Bar(*columns, console=console) if console.is_terminal else None
        self.tasks: dict[str, Any] = {}

    def show(self, stage: str, done: int, of: int) -> None:
        """So much of a stage is done."""
        if self.bar:
            if stage not in self.tasks:
                self.tasks[stage] = self.bar.add_task(stage, total=of)
            self.bar.update(self.tasks[stage], completed=done, total=of)
        elif done == of:
            print(f"{stage}: {done}/{of}", file=sys.stderr, flush=True)
