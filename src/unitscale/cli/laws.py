"""`unitscale laws`: which recipe, which size and how many tokens, from one's own runs."""

import json as json_module
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli import option
from unitscale.cli.exit import checking_arguments
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.laws import Law

laws = typer.Typer(
    name="laws",
    help="Fit the loss over size, tokens and precision to your runs, and ask it what to train.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

LawOption = Annotated[
    str,
    typer.Option(
        "--law",
        metavar="FILE",
        help="What `laws fit` wrote. `published` is the law of arXiv 2411.04330, a demo: its "
        "constants are of other models.",
    ),
]
Size = Annotated[
    float,
    typer.Option("--N", help="Parameters without embedding tables.", show_default=False),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="Name of the recipe; or give --P.", show_default=False),
]
Bits = Annotated[
    list[str] | None,
    typer.Option(
        "--P",
        metavar="BITS",
        help="Instead of --recipe: bits of all tensors, or of one, as `w=4`. Repeatable.",
        show_default=False,
    ),
]


@laws.command()
def fit(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            parser=option.given_path,
            help="runs.csv of a sweep, results.json of comparisons, their folders, or a table with "
            "columns N, D, loss and recipe or P_w, P_a, P_kv. docs/laws.md has them all.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", parser=option.given_path, metavar="FILE", help="The law to write."
        ),
    ] = Path("law.json"),
    reference: Annotated[
        str | None,
        typer.Option(
            help="Recipe whose parameters count whole. Default: the most precise one.",
            show_default=False,
        ),
    ] = None,
    untied: Annotated[
        bool,
        typer.Option(
            "--untied", help="Fit an exponent for size and one for tokens. Default: one for both."
        ),
    ] = False,
    draws: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="Resampled fits, which give the intervals; 0: none."),
    ] = 100,
    noise: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Nats: rows whose loss rises by less when rounded after training are left out of "
            "that part.",
        ),
    ] = 0.0,
    figure: Annotated[
        Path | None,
        typer.Option(
            parser=option.given_path,
            metavar="FILE",
            help="A picture of the fit: PNG, SVG or PDF.",
            show_default=False,
        ),
    ] = None,
    json: option.Json = False,
) -> None:
    """Fit a law to runs: at least three sizes, three numbers of tokens and two precisions.

    Runs that diverged are left out, and of several learning rates the best is taken. What the rows
    cannot tell is said, or refused.
    """
    from unitscale.laws import fit as fit_rows
    from unitscale.laws import read_rows
    from unitscale.laws.file import to_json
    from unitscale.report.extra import imported

    with checking_arguments():
        if figure is not None:
            imported("matplotlib")
            check_picture(figure)
        check_writable(out)
        table = read_rows(sources, count=count_parameters)
        law = fit_rows(table, tied=not untied, reference=reference, draws=draws, noise=noise)
        law.save(out)
        if figure is not None:
            from unitscale.laws.draw import draw_fit

            draw_fit(law, table.rows, figure)
    if json:
        print(json_module.dumps(to_json(law), indent=2))
        return
    show(str(law), "", f"{out}  {figure or ''}".rstrip())


@laws.command()
def predict(
    size: Size,
    tokens: Annotated[float, typer.Option("--D", help="Tokens to train on.", show_default=False)],
    recipe: Recipe = None,
    bits: Bits = None,
    post: Annotated[
        float | None,
        typer.Option(
            "--P-post", help="Bits of weights rounded after training.", show_default=False
        ),
    ] = None,
    law: LawOption = "law.json",
    json: option.Json = False,
) -> None:
    """Predict the loss of a run, with the interval in which 90 of 100 such runs fall."""
    with checking_arguments(), quiet():
        found = read_law(law).predict(
            size=size, tokens=tokens, recipe=recipe, bits=parse_bits(bits), post_bits=post
        )
    answer(found, json=json)


@laws.command()
def plan(
    flops: Annotated[
        float,
        typer.Option(help="The budget: 6 N D operations at 16 bits.", show_default=False),
    ],
    fix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|D|P=VALUE",
            help="What is decided already, as `N=1e8`, `D=2e9` or `P=fp8`. Repeatable.",
            show_default=False,
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT,...",
            help="What the machine multiplies: kinds of formats (fp8, bf16, int8), recipes or "
            "bits; `fp8:10` says what it costs there. Default: all that the law knows.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            parser=option.given_path,
            metavar="FILE",
            help="A picture of the losses around the optimum: PNG, SVG or PDF.",
            show_default=False,
        ),
    ] = None,
    law: LawOption = "law.json",
    json: option.Json = False,
) -> None:
    """Find the size, the tokens and the precision with the lowest loss for a budget.

    The optimum is flat: the answer says which sizes and precisions are within 0.5 % of it. The
    cost of a run is 6 N D times its bits over 16.
    """
    from unitscale.report.extra import imported

    with checking_arguments(), quiet():
        known = read_law(law)
        if figure is not None:
            imported("matplotlib")
            check_picture(figure)
        names = None if hardware is None else [name.strip() for name in hardware.split(",")]
        found = known.plan(flops=flops, fix=parse_fixed(fix), hardware=names)
        if figure is not None:
            from unitscale.laws.draw import draw_plan

            draw_plan(known, figure, flops=flops)
    answer(found, json=json)


@laws.command()
def dcrit(
    size: Size,
    post: Annotated[
        float,
        typer.Option(
            "--P-post", help="Bits of weights rounded after training.", show_default=False
        ),
    ],
    law: LawOption = "law.json",
    json: option.Json = False,
) -> None:
    """Find the tokens past which more training hurts a model whose weights are rounded after it."""
    with checking_arguments(), quiet():
        found = read_law(law).dcrit(size=size, post_bits=post)
    answer(found, json=json)


def read_law(text: str) -> "Law":
    """The law in a file, or the published one.

    Raises:
        ValueError, OSError: as `laws.load`.
    """
    from unitscale.laws import load, published
    from unitscale.laws.preset import NAME

    if text == NAME:
        return published()
    return load(option.given_path(text))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of Python's API: the answer has them as notes, which are printed."""
    from unitscale.laws import ExtrapolationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        yield


def answer(found: Any, *, json: bool) -> None:
    """Print an answer with its notes; beside JSON, which holds them too, they are on stderr."""
    if not json:
        show(str(found))
        return
    for note in found.notes:
        print(f"unitscale: {note}", file=sys.stderr)
    print(json_module.dumps(without_infinity(asdict(found)), indent=2))


def without_infinity(value: Any) -> Any:
    """A value as JSON has it: what is infinite is null."""
    if isinstance(value, Mapping):
        return {key: without_infinity(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def parse_bits(texts: Sequence[str] | None) -> float | dict[str, float] | None:
    """The bits of all tensors, or of each.

    Raises:
        ValueError: no number.
    """
    if not texts:
        return None
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            bits = float(value)
        except ValueError:
            raise ValueError(f"--P {text}: expected bits, as 8, or w=8") from None
        if not equals:
            if len(texts) > 1:
                raise ValueError(f"--P {text}: bits of all tensors stand alone; or name each")
            return bits
        found[name] = bits
    return found


def parse_fixed(texts: Sequence[str] | None) -> dict[str, float | str]:
    """What is given already.

    Raises:
        ValueError: not NAME=VALUE, or a name twice.
    """
    found: dict[str, float | str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise ValueError(f"--fix {text}: expected N=, D= or P= and a value")
        if name in found:
            raise ValueError(f"--fix {text}: {name} is given twice")
        found[name] = value
    return found


def check_writable(path: Path) -> None:
    """Refuse a law that could not be written, before anything is fitted.

    Raises:
        OSError: it is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist; make it first")


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is fitted.

    Raises:
        ValueError: no format of a picture. OSError: as `check_writable`.
    """
    from unitscale.report.figure import PICTURES

    if path.suffix[1:].lower() not in ("", *PICTURES):
        raise ValueError(f"{path} ends in {path.suffix}; expected .png, .svg or .pdf")
    check_writable(path)


def count_parameters(settings: Mapping[str, Any]) -> tuple[int, int]:
    """The parameters of a run of a comparison: all, and those in embedding tables.

    Its model is built on torch's meta device, without memory.

    Raises:
        ValueError: its settings are none, or its model cannot be built.
    """
    from dataclasses import fields

    from unitscale.train.config import TrainConfig

    names = {field.name for field in fields(TrainConfig)}
    known = {key: value for key, value in settings.items() if key in names}
    # Rounding changes no number of parameters, and the recipe may be a person's own.
    recipe = "fp32-units" if settings.get("unit_scaled") else "fp32"
    known |= {"recipe": recipe, "seed": 0, "lr": 1, "steps": 1}
    return counted(json_module.dumps(known, sort_keys=True))


@cache
def counted(config: str) -> tuple[int, int]:
    """The parameters of a configuration in JSON; the runs of a comparison have few of them.

    Raises:
        ValueError: as `count_parameters`.
    """
    from unitscale.sweep.count import count_of
    from unitscale.train.config import TrainConfig
    from unitscale.train.initial import ModelError

    try:
        found = count_of(TrainConfig.from_json(json_module.loads(config)))
    except (ModelError, TypeError) as error:
        raise ValueError(f"its model cannot be built to count its parameters: {error}") from error
    return found.total, found.embedding
