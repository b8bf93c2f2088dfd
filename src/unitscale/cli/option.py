"""Options that several commands share, and the configuration that they add up to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unitscale.train import TrainConfig

RUN, MODEL = "Run", "Model"
MOST_THREADS = 1024
DEFAULTS: dict[str, Any] = {"norm": "pre", "residual": "default", "width": 128, "depth": 4}


def given_path(text: str) -> Path:
    """A path that says something: an empty one would be the current folder.

    Raises:
        typer.BadParameter: it is empty.
    """
    if not text:
        raise typer.BadParameter("it is empty; expected a path (the current folder is .)")
    return Path(text)


Data = Annotated[
    Path | None,
    typer.Option(
        parser=given_path,
        metavar="FILE",
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
        help="Continue what --out holds, bit-identically on a CPU with the same --threads; start "
        "where it holds nothing.",
        rich_help_panel=RUN,
    ),
]
Inner = Annotated[
    str,
    typer.Option(
        help="Compiler of the rewritten graph: eager, inductor, or auto (inductor on a GPU).",
        rich_help_panel=RUN,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads. Default: torch's choice.", rich_help_panel=RUN, show_default=False
    ),
]
Tensorboard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write event files for TensorBoard as well; `tensorboard --logdir OUT` shows them.",
        rich_help_panel=RUN,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Where to run: auto (a GPU where torch sees one), cpu, cuda or cuda:NUMBER.",
        rich_help_panel=RUN,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="What the model and its optimizer are held in: fp32 or bf16.", rich_help_panel=RUN
    ),
]
States = Annotated[
    str | None,
    typer.Option(
        help="How the optimizer holds its moments and master weights: fp32, fp8-lm, coat, "
        "bf16-stochastic or master24 (the last two with --dtype bf16). Default: torch's AdamW.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Parallel = Annotated[
    str | None,
    typer.Option(
        help="Under torchrun: how ranks share the model, ddp or fsdp2. Default: ddp.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Accumulate = Annotated[
    int,
    typer.Option(
        help="Micro-batches of a step, on each rank; --batch-size is that of the whole step.",
        rich_help_panel=RUN,
    ),
]
RankTimeout = Annotated[
    int,
    typer.Option(
        help="Under torchrun: seconds after which a rank that does not answer counts as gone, "
        "and the run ends.",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting, as in `--set clip_norm=1 --set model.heads=4`. Repeatable; they "
        "are listed below.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="Sequence layer (attention, conv or rnn) of the built-in model, or an existing model, "
        "unchanged: gpt2 or llama of transformers, or MODULE:FACTORY or FILE.py:FACTORY.",
        rich_help_panel=MODEL,
    ),
]
Norm = Annotated[
    str,
    typer.Option(
        help="Normalization of the built-in model: pre, post, res-post or none.",
        rich_help_panel=MODEL,
    ),
]
Residual = Annotated[
    str,
    typer.Option(
        help="Residual scheme of the built-in model: default, fixed (with model.tau), running-mean "
        "or ratio (with model.tau).",
        rich_help_panel=MODEL,
    ),
]
Width = Annotated[int, typer.Option(help="Width of the residual stream.", rich_help_panel=MODEL)]
Depth = Annotated[
    int,
    typer.Option(
        help="Number of layers: pairs of a sequence layer and an MLP.", rich_help_panel=MODEL
    ),
]


def model_fields(model: str, *, norm: str, residual: str, width: int, depth: int) -> dict[str, Any]:
    """The fields of the configuration that the options of the panel "Model" decide.

    Raises:
        ValueError: an option that the model does not have.
    """
    from unitscale.models.existing import BUILT_IN, is_existing

    options: dict[str, Any] = {"norm": norm, "residual": residual, "width": width, "depth": depth}
    if not is_existing(model):
        return {"model": {"layer": model} | options}
    takes = {"width", "depth"} if model in BUILT_IN else set()
    for name in options.keys() - takes:
        if options[name] != DEFAULTS[name]:
            raise ValueError(
                f"--{name} {options[name]} is not an option of {model}; set an argument of a "
                "factory with --set model.NAME=VALUE"
            )
    return {"existing": model, "model": {name: options[name] for name in sorted(takes)}}


def build_config(
    settings: Sequence[str] | None,
    *,
    model: Mapping[str, Any],
    device: str,
    reserved: Mapping[str, str] = MappingProxyType({}),
    **fields: Any,
) -> "TrainConfig":
    """The configuration from the named options and the `--set` ones, which win.

    An existing model is looked for, and its module imported. The device is not: that imports torch
    (`with_device`).

    Args:
        device: the name of one, or "auto", which stands for the CPU here.
        reserved: fields that `--set` may not have, and the option to use for each.

    Raises:
        ValueError, TypeError: a setting is not KEY=VALUE, or any value is wrong.
    """
    from unitscale.models.existing import find_factory
    from unitscale.train import TrainConfig

    model = dict(model)
    fields |= {"model": model, "device": "cpu" if device == "auto" else device}
    reserved = {"device": "--device"} | dict(reserved)
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: expected KEY=VALUE")
        if key in reserved:
            raise ValueError(f"--set {setting}: use {reserved[key]}")
        if key == "model":
            raise ValueError(f"--set {setting}: use --model, and --set model.NAME=VALUE")
        if key.startswith("model."):
            model[key.removeprefix("model.")] = parse_value(text)
        else:
            fields[key] = parse_value(text)
    config = TrainConfig.from_json(fields)
    if config.existing is not None:
        find_factory(config.existing, config.model_options)
    return config


def with_device(config: "TrainConfig", device: str) -> "TrainConfig":
    """The configuration on the device that --device names.

    Raises:
        ValueError: there is no such device.
    """
    from unitscale.train.device import resolve

    return replace(config, device=resolve(device))


def parse_value(text: str) -> Any:
    """The JSON value that `text` is, or else `text` itself.

    Raises:
        ValueError: a number of thousands of digits, or thousands of brackets.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except RecursionError:
        raise ValueError("a value of --set has too many brackets in one another") from None


def set_threads(threads: int | None) -> None:
    """Limit torch to this many threads.

    Raises:
        ValueError: fewer than one, or more than any machine has.
    """
    if threads is None:
        return
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"--threads is {threads}; expected from 1 to {MOST_THREADS}")
    import torch

    torch.set_num_threads(threads)
