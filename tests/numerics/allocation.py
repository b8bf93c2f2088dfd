"""How large the tensors are that some code makes."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestAllocation(TorchDispatchMode):
    """The number of elements of the largest new tensor; a view is none."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        for found, returned in zip(results, func._schema.returns, strict=False):
            if isinstance(found, torch.Tensor) and returned.alias_info is None:
                self.largest = max(self.largest, found.numel())
        return result


def largest_allocation(function: Any, *args: Any, **kwargs: Any) -> int:
    """Elements of the largest tensor that a call makes."""
    with LargestAllocation() as seen:
        function(*args, **kwargs)
    return seen.largest
