"""The automatic transform of the package `unit-scaling` (Graphcore), through its public interface.

It scales by the shapes of ops and changes the function of the model, so only two questions have the
same meaning for it: does a step run, and which share of the tensors is in range.
"""

import math
import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import fx
from zoo_checks import first_line, fresh, in_range
from zoo_entry import Entry, loss_of

from unitscale.data import Split


def check_peer(entry: Entry, text: Split) -> dict[str, Any]:
    """Whether `unit_scaling.transforms.unit_scale` trains a step, and its shares in [1/2, 2]."""
    from unit_scaling.transforms import track_scales, unit_scale

    warnings.simplefilter("ignore")
    found = version("unit-scaling")
    try:
        loss = step(unit_scale(fresh(entry)), entry, text)
    except Exception as error:  # whatever it raises is the finding
        return {"version": found, "works": False, "reason": summary(error)}
    result: dict[str, Any] = {"version": found, "works": math.isfinite(loss), "loss": loss}
    try:
        tracked = track_scales(unit_scale(fresh(entry)))
        step(tracked, entry, text)
        result["shares"] = shares(tracked.scales_graph())
    except Exception as error:
        result["reason"] = "scales not measured: " + summary(error)
    return result


def step(model: torch.nn.Module, entry: Entry, text: Split) -> float:
    """The loss of a forward and a backward pass."""
    torch.manual_seed(1)
    loss = loss_of(model, entry.batch(text, -1))
    loss.backward()
    return loss.item()


def summary(error: Exception) -> str:
    """The class and the first line that says something of an error, through Dynamo's wrapping."""
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    return f"{type(cause).__name__}: {first_line(str(cause))}"


def shares(graph: fx.Graph) -> dict[str, float | None]:
    """Shares of the tensors that ops compute, of their gradients and of the weights' gradients."""
    nodes = [node for node in graph.nodes if node.meta.get("metrics") is not None]
    reached = [node for node in nodes if node.meta["metrics"].bwd is not None]
    inner = [node for node in reached if node.op.startswith("call_")]
    weights = [node for node in reached if node.meta.get("requires_grad")]
    return {
        "activations": in_range(rms(node.meta["metrics"].fwd) for node in inner),
        "gradients": in_range(rms(node.meta["metrics"].bwd) for node in inner),
        "weight gradients": in_range(rms(node.meta["metrics"].bwd) for node in weights),
    }


def rms(data: Any) -> float:
    """Root mean square from the mean and the (unbiased) standard deviation that it records."""
    if data.numel == 1:
        return data.abs_max
    variance = data.std**2 * (data.numel - 1) / data.numel
    return math.sqrt(variance + data.abs_mean**2)
