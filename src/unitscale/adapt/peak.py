"""The most memory that a call holds at once."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], Any], *, device: str | torch.device = "cpu") -> int:
    """Bytes that a call has allocated at once, beyond what there was before it.

    On a GPU they are those of torch's allocator; on a CPU those that torch's profiler sees, which
    are the tensors' alone. Let the call run once before, or what is compiled and kept counts too.

    Raises:
        ValueError: a device that is neither.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        raise ValueError(f"peak_bytes: device is {device}; expected a CPU or a CUDA device.")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    # Only the trace has every allocation; `found.events()` adds up those of an operator.
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        found.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    moves = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    held = highest = 0
    for move in moves:
        held += move["args"]["Bytes"]
        highest = max(highest, held)
    return highest
