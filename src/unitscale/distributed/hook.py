"""`fp8_hook`: the gradients of a DistributedDataParallel model travel in 8 bits."""

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unitscale.distributed.agreement import agree
from unitscale.distributed.scale import GradientScale, UnitScale
from unitscale.distributed.watch import watch
from unitscale.distributed.wire import GradientWire
from unitscale.formats import BF16, E4M3FN, FloatFormat, torch_dtype
from unitscale.graph.engine import timeout_of

__all__ = ["fp8_hook"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fp8_hook(
    model: DistributedDataParallel,
    *,
    format: FloatFormat = E4M3FN,
    mean_format: FloatFormat | None = None,
    scale: GradientScale = UnitScale(),  # noqa: B008 - frozen
    rounding: Literal["nearest", "stochastic"] = "nearest",
    seed: int = 0,
    group: Any = None,
) -> GradientWire:
    """Average the gradients of a DDP model over ranks in 8 bits, from its next backward pass on.

    Each rank sends about `2 (N - 1) / N` bytes for each parameter: half of what a BF16 ring sends,
    a quarter of FP32's. The mean that arrives is `round(mean(round(g / s))) * s` with the scale `s`
    of the parameter, equal to the bit on all ranks. Its relative error is that of two roundings,
    0.038 in E4M3FN and 0.075 in E5M2 on Gaussian gradients, whatever the number of ranks.

    A NaN or an infinity on one rank arrives as NaN on all of them, so that a GradScaler sees it.
    Elements beyond the format's range saturate, are counted, and are warned of by rank 0.

    Every rank has to call this, after it wrapped the model and before the first backward pass. They
    compare what they were given, and try one exchange, before anything is registered.

    Args:
        model: wrapped; its trainable parameters float32, bfloat16, float16 or float64. Backends
            that move uint8 by all-to-all serve: gloo (on CPUs) and NCCL.
        format: an 8-bit format with NaN that torch stores: E4M3FN, E5M2 and their FNUZ forms.
        mean_format: of the mean on its way back; None is `format`. BF16 sends half as much again,
            and leaves the one rounding of each payload: an error of 0.027 in E4M3FN.
        scale: `UnitScale`, `CurrentScale`, `AutomaticScale` or `RootScale`.
        rounding: of each payload and of the mean.
        seed: of stochastic rounding, by a hash of seed, pass, bucket, rank and position.
        group: a process group of the model's ranks that nobody else uses, for a model on CPUs: the
            collectives are made in a thread of their own, beside others of the backward pass. None
            makes one, which torch can if the model is on all ranks of the job.
    Returns:
        The state of the hook: `report()`, `state_dict()`, `load_state_dict`, `remeasure()`.
    Raises:
        TypeError: the model is no DistributedDataParallel.
        ValueError: an option or a parameter does not serve, ranks differ, the model has a hook
            already, or the backend cannot exchange bytes. Every rank raises and nothing is changed.
    Source: arXiv 2310.18313 (FP8-LM); constant scales from units are our own.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"fp8_hook: model is a {type(model).__name__}; expected a DistributedDataParallel. "
            "Wrap the model first and pass the wrapper"
        )
    shared = model.process_group
    ranks, rank = dist.get_world_size(shared), dist.get_rank(shared)
    names = {p: name for name, p in model.module.named_parameters() if p.requires_grad}
    mean_format = format if mean_format is None else mean_format
    fault = fault_of(model.module, names, format, scale, rounding, seed)
    if fault is None and mean_format not in (format, BF16):
        fault = f"mean_format is {mean_format}; expected BF16, or None for {format}"
    fault = fault or fault_of_group(shared, group, names)
    options = {
        "format": str(format),
        "mean_format": str(mean_format),
        "scale": str(scale),
        "rounding": str(rounding),
        "seed": str(seed),
        "the version of torch": str(torch.__version__),
        "a parameter": ", ".join(f"{name} {tuple(p.shape)} {p.dtype}" for p, name in names.items()),
    }
    agree("fp8_hook", options, fault, shared)
    device = next(iter(names)).device
    if group is None:
        # One without local synchronization, under which torch hangs if ranks know of different
        # numbers of groups (seen on 2.13).
        group = shared
        if is_on_cpu(device):
            # It waits for the others as long as the model's group does.
            group = dist.new_group(backend=dist.get_backend(shared), timeout=timeout_of(shared))
    wire = GradientWire(
        format=format,
        mean_format=mean_format,
        scale=scale,
        rounding=rounding,
        seed=seed,
        group=group,
        rank=rank,
        ranks=ranks,
        names=names,
    )
    try_out(wire, device)
    try:
        model.register_comm_hook(wire, exchange_gradients)
    except RuntimeError as error:
        raise ValueError(
            "fp8_hook: torch refused the hook; a model takes one communication hook, before its "
            f"first backward pass. Wrap the model anew. torch says: {str(error).splitlines()[0]}"
        ) from error
    watch(model, wire)
    return wire


def exchange_gradients(
    state: GradientWire,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """The hook itself. torch wants these names and these types."""
    if not isinstance(bucket, dist.GradBucket):  # type: ignore[attr-defined]
        raise TypeError(
            f"fp8_hook: torch handed over a {type(bucket).__name__} and no bucket; set "
            'torch._dynamo.config.optimize_ddp to something other than "python_reducer"'
        )
    return state.take(
        bucket.index(), bucket.buffer(), bucket.parameters(), is_last=bucket.is_last()
    )


def fault_of(
    model: nn.Module,
    names: dict[Tensor, str],
    format: object,
    scale: object,
    rounding: object,
    seed: object,
) -> str | None:
    """What is wrong with the arguments of `fp8_hook` on this rank."""
    if not isinstance(format, FloatFormat) or not (
        format.bits == 8
        and format.has_nan
        and format.has_zero
        and format.is_signed
        and torch_dtype(format)
    ):
        return f"format is {format}; expected E4M3FN or E5M2, 8 bits with NaN that torch stores"
    if not isinstance(scale, get_args(GradientScale)):
        return (
            f"scale is {scale!r}; expected a UnitScale, CurrentScale, AutomaticScale or RootScale "
            "of unitscale.distributed"
        )
    if isinstance(scale, UnitScale) and 2.0**scale.target_log2 > format.max / 2:
        return (
            f"scale is {scale}, with an RMS of 2**{scale.target_log2} in {format}, whose largest "
            f"value is {format.max:g}; expected an RMS of half of that at most"
        )
    if rounding not in ("nearest", "stochastic"):
        return f"rounding is {rounding!r}; expected 'nearest' or 'stochastic'"
    if type(seed) is not int:
        return f"seed is {seed!r}; expected an int"
    if not names:
        return "the model has no parameter that requires a gradient; nothing would be exchanged"
    for parameter, name in names.items():
        if parameter.dtype not in DTYPES:
            return (
                f"parameter {name!r} is {parameter.dtype}; expected float32, bfloat16, float16 or "
                "float64"
            )
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            return (
                f"{path or 'the model'} has sparse gradients; expected dense ones. Build it with "
                "sparse=False"
            )
    return None


def fault_of_group(shared: Any, own: Any, names: dict[Tensor, str]) -> str | None:
    """What is wrong with the process group for the hook alone, beside that of the model."""
    ranks = dist.get_process_group_ranks(shared)
    if own is None:
        if len(ranks) == dist.get_world_size() or not is_on_cpu(next(iter(names)).device):
            return None
        return (
            f"the model is on ranks {ranks} of {dist.get_world_size()}, and torch makes a process "
            "group in all ranks together; pass group=dist.new_group(ranks), made in every rank"
        )
    if own is shared or dist.get_process_group_ranks(own) != ranks:
        return (
            f"group has ranks {dist.get_process_group_ranks(own)}"
            f"{' and is that of the model' if own is shared else ''}; expected another group of "
            f"the model's ranks, {ranks}"
        )
    return None


def is_on_cpu(device: torch.device) -> bool:
    """Whether exchanges run in a thread, which needs a process group for itself."""
    return device.type == "cpu"


def try_out(wire: GradientWire, device: torch.device) -> None:
    """One exchange of ones, which have to arrive as ones, to rounding; the wire is as it was.

    Two roundings of E5M2 at a scale that is no power of two are off by (1 + 2^-3)^2 - 1 at most.

    Raises:
        ValueError: the backend cannot do it.
    """
    trial = GradientWire(
        format=wire.format,
        mean_format=wire.mean_format,
        scale=wire.scale,
        rounding=wire.rounding,
        seed=wire.seed,
        group=wire.group,
        rank=wire.rank,
        ranks=wire.ranks,
        names={},
    )
    ones = torch.ones(wire.ranks + 1, device=device)
    fault = None
    try:
        trial.exchange(0, ones, ["trial"], [len(ones)], is_last=True)
    except (RuntimeError, NotImplementedError) as error:
        fault = str(error).splitlines()[0]
    if fault is None and not bool(((ones - 1).abs() < 0.27).all()):
        fault = f"ones arrived as {ones.tolist()}"
    if fault is not None:
        raise ValueError(
            f"fp8_hook: backend {dist.get_backend(wire.group)!r} on {device} did not exchange "
            f"bytes ({fault}); expected gloo on CPUs or NCCL on GPUs"
        )
