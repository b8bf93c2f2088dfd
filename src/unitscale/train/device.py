"""Where a run computes, and in what dtype it holds its model."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By the names of the configuration and the command line."""


def resolve(name: str) -> str:
    """A device's name with "auto" replaced: "cuda" where torch sees a GPU, else "cpu".

    Raises:
        ValueError: a device that is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    find_device(name)
    return name


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: no such name, or torch sees no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; expected cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise ValueError(
            f"device is {name!r}, and torch sees {count or 'no'} CUDA device{'s' * (count != 1)}; "
            "use --device cpu" + (", or a lower number" if count else "")
        )
    return device


def wait(device: torch.device) -> None:
    """Until the device has done all it was given, so that a clock shows what it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
