"""What FP8 inference leaves in high precision, rounded all the same when it is asked for.

Softmax and GELU are what FP8-BERT found sensitive (arXiv 2312.05725), and attention's products have
no weight. The model's forward runs under a mode that rounds

    "softmax"     probabilities, at the fixed scale 1 / max
    "gelu"        the result of GELU
    "attention"   both operands of products of two activations; of fused attention q, k and v, and
                  the probabilities at the fixed scale

in the element format of the scheme's inputs, with one scale for each tensor, from its amax.
"""

import inspect
import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unitscale.deploy.scheme import Scheme
from unitscale.formats import Codec

__all__ = ["PARTS", "Part", "check_parts", "install", "rounding", "unmet"]

Part = Literal["attention", "softmax", "gelu"]
PARTS: tuple[str, ...] = get_args(Part)

SOFTMAX: tuple[Any, ...] = (F.softmax, torch.softmax, Tensor.softmax)
GELU: tuple[Any, ...] = (F.gelu,)
PRODUCTS: tuple[Any, ...] = (
    *(torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__),
)
ATTENTION = F.scaled_dot_product_attention


def check_parts(parts: Sequence[str], scheme: Scheme) -> None:
    """Refuse unknown parts, and any where the scheme rounds no activation.

    Raises:
        ValueError: says which.
    """
    if isinstance(parts, str) or (unknown := [part for part in parts if part not in PARTS]):
        got = parts if isinstance(parts, str) else unknown[0]
        raise ValueError(f"quantize: also has {got!r}; expected a tuple of {', '.join(PARTS)}")
    if parts and scheme.input is None:
        raise ValueError(
            f"quantize: also={tuple(parts)!r} rounds activations, and {scheme.name!r} rounds "
            "weights alone"
        )


def rounding(parts: Sequence[str], scheme: Scheme) -> AbstractContextManager[Any]:
    """A context in which these parts are rounded."""
    return Rounding(tuple(parts), scheme) if parts else nullcontext()


def unmet(mode: AbstractContextManager[Any]) -> list[str]:
    """The parts that a context of `rounding` has met nowhere yet."""
    if not isinstance(mode, Rounding):
        return []
    return [part for part in mode.parts if part not in mode.met]


def install(model: nn.Module, parts: Sequence[str], scheme: Scheme) -> None:
    """Have a model's forward round these parts from now on."""
    if parts:
        model.__dict__["forward"] = Forward(model, tuple(parts), scheme)


class Forward:
    """A model's forward, under the mode."""

    def __init__(self, model: nn.Module, parts: tuple[str, ...], scheme: Scheme) -> None:
        self.model, self.parts, self.scheme = model, parts, scheme
        self.own = model.__dict__.get("forward")  # of this model alone, where someone gave it one
        self.is_checked = False

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the forward: transformers reads it."""
        if self.own is not None:
            return inspect.signature(self.own)
        own = inspect.signature(type(self.model).forward)
        return own.replace(parameters=list(own.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model."""
        forward = self.own or partial(type(self.model).forward, self.model)
        if self.is_checked or torch.compiler.is_compiling():
            with Rounding(self.parts, self.scheme):
                return forward(*args, **kwargs)
        with (mode := Rounding(self.parts, self.scheme)):
            result = forward(*args, **kwargs)
        self.is_checked = True
        if missing := unmet(mode):
            warnings.warn(
                f"also={tuple(missing)!r} rounded nothing in the first call of this "
                f"{type(self.model).__name__}: it computes it by other functions than torch's, or "
                "not at all",
                stacklevel=2,
            )
        return result


class Rounding(TorchFunctionMode):
    """Rounds the results of softmax and GELU, and the operands of attention."""

    def __init__(self, parts: tuple[str, ...], scheme: Scheme) -> None:
        super().__init__()
        assert scheme.input is not None
        self.parts, self.codec = parts, Codec(format=scheme.input.element)
        self.met: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One function of torch, called inside of the model."""
        kwargs = kwargs or {}
        if func is ATTENTION and ("attention" in self.parts or "softmax" in self.parts):
            self.note("attention", "softmax")
            return self.attention(*args, **kwargs)
        if func in SOFTMAX and "softmax" in self.parts:
            self.note("softmax")
            return self.probabilities(func(*args, **kwargs))
        if func in GELU and "gelu" in self.parts:
            self.note("gelu")
            return self.codec.round(func(*args, **kwargs))
        if func in PRODUCTS and "attention" in self.parts and are_activations(args):
            self.note("attention")
            args = tuple(self.codec.round(x) for x in args)
        return func(*args, **kwargs)

    def note(self, *parts: str) -> None:
        """Parts that were met; compiled code keeps no record."""
        if not torch.compiler.is_compiling():
            self.met.update(parts)

    def probabilities(self, p: Tensor) -> Tensor:
        """Rounded at the scale that makes 1 the largest value."""
        return self.codec.round(p, scale=1 / self.codec.element.max)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`softmax(q k^T scale + mask) v`, in the steps that can be rounded."""
        if enable_gqa:
            groups = query.size(-3) // key.size(-3)
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        if "attention" in self.parts:
            query, key, value = (self.codec.round(x) for x in (query, key, value))
        scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
        scores = query @ key.transpose(-1, -2) * scale
        if is_causal:
            ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
            scores = scores.masked_fill(~ones.tril(), -torch.inf)
        if attn_mask is not None:
            is_kept = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if is_kept else scores + attn_mask
        # Of a row with every place masked torch's own gives zeros, where softmax gives NaN.
        is_masked = torch.isneginf(scores).all(-1, keepdim=True)
        p = self.probabilities(torch.softmax(scores, -1).masked_fill(is_masked, 0.0))
        return F.dropout(p, dropout_p) @ value


def are_activations(args: tuple[Any, ...]) -> bool:
    """Whether a product is of two tensors that are no weights."""
    return len(args) == 2 and all(
        isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.dim() > 2 for x in args
    )
