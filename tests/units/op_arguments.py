"""Arguments to call each op of the table with."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = tuple[Any, ...]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def pair(*shape: int) -> Callable[[], Arguments]:
    return lambda: (draw(*shape), draw(*shape))


def one(*others: Any) -> Callable[[], Arguments]:
    return lambda: (draw(4, 6), *others)


CONVOLUTION = ([1], [0], [1], False, [0], 1)
"""Stride, padding, dilation, transposed, output padding and groups."""

# Arguments of a call, by the name of the op; torch's function, operator and method share them.
ARGUMENTS: dict[str, Callable[[], Arguments]] = {
    "linear": lambda: (draw(3, 4), draw(5, 4), draw(5)),
    "conv1d": lambda: (draw(2, 3, 6), draw(4, 3, 2), draw(4)),
    "conv2d": lambda: (draw(2, 3, 5, 5), draw(4, 3, 2, 2), draw(4)),
    "conv3d": lambda: (draw(1, 3, 4, 4, 4), draw(2, 3, 2, 2, 2), draw(2)),
    "conv_transpose1d": lambda: (draw(2, 3, 6), draw(3, 4, 2), draw(4)),
    "conv_transpose2d": lambda: (draw(2, 3, 5, 5), draw(3, 4, 2, 2), draw(4)),
    "conv_transpose3d": lambda: (draw(1, 3, 3, 3, 3), draw(3, 2, 2, 2, 2), draw(2)),
    "scaled_dot_product_attention": lambda: (draw(2, 3, 4), draw(2, 5, 4), draw(2, 5, 4)),
    "matmul": lambda: (draw(2, 3, 4), draw(4, 5)),
    "__matmul__": lambda: (draw(2, 3, 4), draw(4, 5)),
    "mm": lambda: (draw(3, 4), draw(4, 5)),
    "bmm": lambda: (draw(2, 3, 4), draw(2, 4, 5)),
    "addmm": lambda: (draw(5), draw(3, 4), draw(4, 5)),
    "baddbmm": lambda: (draw(2, 3, 5), draw(2, 3, 4), draw(2, 4, 5)),
    "einsum": lambda: ("ij,jk,kl->il", draw(2, 3), draw(3, 4), draw(4, 2)),
    "addbmm": lambda: (draw(3, 5), draw(2, 3, 4), draw(2, 4, 5)),
    "addmv": lambda: (draw(3), draw(3, 4), draw(4)),
    "addr": lambda: (draw(3, 4), draw(3), draw(4)),
    "bilinear": lambda: (draw(3, 4), draw(3, 2), draw(5, 4, 2), draw(5)),
    "chain_matmul": lambda: (draw(2, 3), draw(3, 4), draw(4, 5)),
    "conv_tbc": lambda: (draw(6, 2, 3), draw(2, 3, 4), draw(4)),
    "convolution": lambda: (draw(2, 3, 6), draw(4, 3, 2), draw(4), *CONVOLUTION),
    "dot": pair(4),
    "ger": lambda: (draw(3), draw(4)),
    "imatmul": lambda: (draw(2, 3, 4), draw(4, 5)),
    "inner": lambda: (draw(3, 4), draw(2, 4)),
    "kron": lambda: (draw(3, 4), draw(2, 2)),
    "linalg_matmul": lambda: (draw(2, 3, 4), draw(4, 5)),
    "linalg_multi_dot": lambda: (draw(2, 3), draw(3, 4), draw(4, 5)),
    "linalg_vecdot": pair(3, 4),
    "mv": lambda: (draw(3, 4), draw(4)),
    "outer": lambda: (draw(3), draw(4)),
    "__rmatmul__": lambda: (draw(4, 5), draw(3, 4)),
    "tensordot": lambda: (draw(3, 4), draw(4, 5), 1),
    "vdot": pair(4),
    "add": pair(3, 4),
    "sub": pair(3, 4),
    "maximum": pair(3, 4),
    "minimum": pair(3, 4),
    "cat": lambda: ([draw(3, 4), draw(2, 4), draw(1, 4)],),
    "stack": lambda: ([draw(3, 4), draw(3, 4)],),
    "where": lambda: (draw(3, 4) > 0, draw(3, 4), draw(3, 4)),
    "mul": pair(3, 4),
    "div": pair(3, 4),
    "truediv": pair(3, 4),
    "neg": one(),
    "abs": one(),
    "relu": one(),
    "leaky_relu": one(0.2),
    "dropout": one(0.5),
    "scaled": one(3.0, 5.0),
    "sum": one(1),
    "mean": one(1),
    "cumsum": one(1),
    "embedding": lambda: (torch.tensor([[1, 0], [3, 1]]), draw(4, 3)),
    "avg_pool1d": lambda: (draw(2, 3, 6), 2),
    "avg_pool2d": lambda: (draw(2, 3, 6, 6), 2),
    "adaptive_avg_pool1d": lambda: (draw(2, 3, 6), 4),
    "adaptive_avg_pool2d": lambda: (draw(2, 3, 6, 6), 4),
    "max_pool1d": lambda: (draw(2, 3, 6), 2),
    "max_pool2d": lambda: (draw(2, 3, 6, 6), 2),
    "interpolate": lambda: (draw(2, 3, 4, 4), None, 1.5, "bilinear"),
    "gather": one(1, torch.tensor([[0, 3]])),
    "index_select": one(1, torch.tensor([0, 3, 3])),
    "roll": one(2, 1),
    "flip": one([1]),
    "tril": one(),
    "triu": one(1),
    "clone": one(),
    "repeat_interleave": one(2, 1),
    "repeat": one(2, 3),
    "to": one(torch.float32),
    "float": one(),
    "type_as": one(torch.zeros(1)),
    "view": one(3, 8),
    "reshape": one((3, 8)),
    "transpose": one(0, 1),
    "permute": one((1, 0)),
    "flatten": one(),
    "unflatten": one(1, (2, 3)),
    "squeeze": lambda: (draw(4, 1, 6), 1),
    "unsqueeze": one(1),
    "contiguous": lambda: (draw(4, 6).T,),
    "swapaxes": one(0, 1),
    "t": one(),
    "expand": lambda: (draw(4, 1), 4, 6),
    "expand_as": lambda: (draw(4, 1), torch.zeros(4, 6)),
    "detach": one(),
    "narrow": one(1, 2, 3),
    "select": one(1, 2),
    "getitem": one((slice(1, 3), [0, 0, 2])),
}
FUNCTIONS_WITHOUT_A_NAME = {F.max_pool1d: "max_pool1d", F.max_pool2d: "max_pool2d"}


def name_of(target: Any) -> str:
    if isinstance(target, str):
        return target
    return FUNCTIONS_WITHOUT_A_NAME.get(target) or target.__name__
