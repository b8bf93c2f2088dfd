"""What unit scaling costs in eager mode: a transformer layer of unit-scaled ops over plain torch's.

    python benchmarks/eager_layer.py [--quick] [--rounds 15] [--threads 1] [--json FILE]

One pre-norm layer (layer norm, four projections, causal attention, GELU MLP; no biases, no dropout)
is written once and run with torch's functions, with ours and with those of unit-scaling, where it
is installed: forward and backward to the input and every parameter. Counts do not depend on the
machine and come first: kernels that aten runs (views and empty tensors are none), and bytes they
write. Goals: 1.10 and 1.02 of plain torch's; in time 1 / 1.02 of its speed at width 256 and more,
1 / 1.15 at width 64, where dispatch and not arithmetic takes the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import paired
import torch
import torch.nn.functional as F
from gpt_block import HEAD
from paired import Row
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import unitscale.functional as U

SIZES = {64: (2, 32), 256: (8, 256), 512: (4, 256)}
"""Batch and length by width."""

EMPTY = {"empty", "new_empty", "empty_like", "new_empty_strided", "empty_strided"}


class Plain:
    """Torch's functions under the names of unit scaling; a residual layer is a plain sum."""

    linear = staticmethod(F.linear)
    layer_norm = staticmethod(F.layer_norm)
    gelu = staticmethod(F.gelu)
    scaled_dot_product_attention = staticmethod(F.scaled_dot_product_attention)

    @staticmethod
    def residual_split(x: Tensor) -> tuple[Tensor, Tensor]:
        """The stream, twice."""
        return x, x

    @staticmethod
    def residual_add(branch: Tensor, skip: Tensor) -> Tensor:
        """The sum."""
        return skip + branch


class Layer(nn.Module):
    """A transformer layer of the functions of a namespace, [batch, length, width] to itself."""

    def __init__(self, ops: Any, width: int) -> None:
        super().__init__()
        self.ops, self.heads = ops, max(width // HEAD, 1)
        # The scale of plain weights is that of torch's linear layers; ours have it in the op.
        scale = 1.0 if ops is not Plain else width**-0.5
        shapes = dict.fromkeys(("query", "key", "value", "leave"), (width, width))
        shapes |= {"up": (4 * width, width), "down": (width, 4 * width)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(scale * torch.randn(shape)))
        for name in ("first", "second"):
            self.register_parameter(f"{name}_gain", nn.Parameter(torch.ones(width)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))

    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP, each with its norm and residual."""
        ops, width = self.ops, x.shape[-1:]
        skip, x = ops.residual_split(x)
        x = ops.layer_norm(x, width, self.first_gain, self.first_bias)
        query, key, value = (
            ops.linear(x, weight, None).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for weight in (self.query, self.key, self.value)
        )
        x = ops.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = ops.linear(x.transpose(1, 2).flatten(2), self.leave, None)
        skip, x = ops.residual_split(ops.residual_add(x, skip))
        x = ops.layer_norm(x, width, self.second_gain, self.second_bias)
        x = ops.linear(ops.gelu(ops.linear(x, self.up, None)), self.down, None)
        return ops.residual_add(x, skip)


@dataclass
class Count:
    """Kernels that ran, and the bytes of what they wrote."""

    kernels: int = 0
    bytes: int = 0


class Counter(TorchDispatchMode):
    """Counts the operations below autograd that make or change values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation; what shares the memory of its input without writing is a view."""
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        inputs = {x.data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        is_written = op._schema.is_mutable
        written = [
            x
            for x in tree_leaves(result)
            if isinstance(x, Tensor) and (is_written or x.data_ptr() not in inputs)
        ]
        if written and op.__name__.partition(".")[0] not in EMPTY:
            self.count.kernels += 1
            self.count.bytes += sum(x.nbytes for x in written)
        return result


def step(ops: Any, width: int, compiled: bool = False) -> Callable[[], object]:
    """Forward and backward of a layer."""
    torch.manual_seed(0)
    layer = Layer(ops, width)
    x, grad = torch.randn(2, *SIZES[width], width)
    inputs = (x.requires_grad_(), *layer.parameters())
    if compiled:
        layer.compile()
    return lambda: torch.autograd.grad(layer(x), inputs, grad)


def count(ops: Any, width: int) -> Count:
    """What one step does."""
    run = step(ops, width)
    run()
    with Counter() as counter:
        run()
    return counter.count


def count_rows(namespaces: dict[str, Any], width: int) -> list[Row]:
    """Kernels and bytes as shares of plain torch's; exact, so without a spread."""
    plain = count(Plain, width)
    rows = []
    for name, ops in namespaces.items():
        found = count(ops, width)
        for what, mine, base in (
            ("kernels", found.kernels, plain.kernels),
            ("bytes written", found.bytes, plain.bytes),
        ):
            ratio = mine / base
            rows.append(
                Row(
                    case=f"{what}, {name}, width {width}",
                    measure="of plain torch's",
                    median=ratio,
                    low=ratio,
                    high=ratio,
                    rounds=1,
                    note=f"{mine:,} to {base:,}",
                )
            )
    return rows


def main() -> None:
    """Measure and print."""
    options = paired.arguments(__doc__).parse_args()
    paired.steady_memory()
    torch.set_num_threads(options.threads)
    namespaces: dict[str, Any] = {"unitscale": U}
    absent = []
    if find_spec("unit_scaling"):
        namespaces["unit-scaling"] = import_module("unit_scaling.functional")
    else:
        absent.append(Row(case="unit-scaling", measure="", note="unit-scaling not installed"))
    widths = (64,) if options.quick else tuple(SIZES)
    rows = count_rows(namespaces, widths[-1] if options.quick else 256)
    for width in widths:
        cases = {
            f"time, {name}, width {width}": step(ops, width)
            for name, ops in {"plain again": Plain, **namespaces}.items()
        }
        rows += paired.compare(step(Plain, width), cases, "of plain torch's speed", options.rounds)
    if not options.quick:
        cases = {"time, unitscale, width 256, compiled": step(U, 256, compiled=True)}
        reference = step(Plain, 256, compiled=True)
        rows += paired.compare(reference, cases, "of plain torch's speed", options.rounds)
    paired.report("Unit-scaled layer, eager", rows + absent, options.json)


if __name__ == "__main__":
    main()
