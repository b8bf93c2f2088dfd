"""Options that several commands share, and the configuration that they add up to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unitscale.train import TrainConfig

RUN, MODEL = "Run", "Model"

Data = Annotated[
    Path | None,
    typer.Option(
        help="Text file; its last tenth validates. Default: the source text of Python's own "
        "standard library.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Steps = Annotated[int, typer.Option(help="Optimizer steps of a run.", rich_help_panel=RUN)]
BatchSize = Annotated[int, typer.Option(help="Windows of text a step.", rich_help_panel=RUN)]
SequenceLength = Annotated[int, typer.Option(help="Bytes in a window.", rich_help_panel=RUN)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue what --out holds, bit-identically with the same --threads; start where it "
        "holds nothing.",
        rich_help_panel=RUN,
    ),
]
Inner = Annotated[
    str,
    typer.Option(help="Compiler of the rewritten graph: eager or inductor.", rich_help_panel=RUN),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads. Default: torch's choice.", rich_help_panel=RUN, show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other field of TrainConfig, or with `model.` of CharLMConfig, as in "
        "`--set clip_norm=1 --set model.heads=4`. Repeatable.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Model = Annotated[
    str, typer.Option(help="Sequence layer: attention, conv or rnn.", rich_help_panel=MODEL)
]
Norm = Annotated[
    str, typer.Option(help="Normalization: pre, post, res-post or none.", rich_help_panel=MODEL)
]
Residual = Annotated[
    str,
    typer.Option(
        help="Residual scheme: default, fixed, running-mean or ratio.", rich_help_panel=MODEL
    ),
]
Width = Annotated[int, typer.Option(help="Width of the residual stream.", rich_help_panel=MODEL)]
Depth = Annotated[
    int, typer.Option(help="Number of (sequence layer, MLP) pairs.", rich_help_panel=MODEL)
]


def build_config(
    settings: Sequence[str] | None,
    *,
    model: dict[str, Any],
    reserved: Mapping[str, str] = MappingProxyType({}),
    **fields: Any,
) -> "TrainConfig":
    """The configuration from the named options and the `--set` ones, which win.

    Args:
        reserved: fields that `--set` may not have, and the option to use for each.

    Raises:
        ValueError, TypeError: a setting is not KEY=VALUE, or any value is wrong.
    """
    from unitscale.train import TrainConfig

    fields["model"] = model
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: expected KEY=VALUE")
        if key in reserved:
            raise ValueError(f"--set {setting}: use {reserved[key]}")
        if key.startswith("model."):
            model[key.removeprefix("model.")] = parse_value(text)
        else:
            fields[key] = parse_value(text)
    return TrainConfig.from_json(fields)


def parse_value(text: str) -> Any:
    """The JSON value that `text` is, or else `text` itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def set_threads(threads: int | None) -> None:
    """Limit torch to this many threads.

    Raises:
        ValueError: fewer than one.
    """
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads is {threads}; expected at least 1")
    import torch

    torch.set_num_threads(threads)
