"""A layer with real one-byte weights (half a byte in 4-bit formats), for prediction."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

import unitscale.functional as U
import unitscale.nn as unn
from unitscale.deploy.scheme import Scheme
from unitscale.formats import BlockFormat, Codec, Encoded

__all__ = ["QuantizedLayer", "matrix_of", "quantized_layers", "why_not"]

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


def is_conv1d_of_gpt2(module: nn.Module) -> bool:
    """Whether a module is `transformers`' linear layer with a weight [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def why_not(module: nn.Module, scheme: Scheme) -> str | None:
    """Why a module with a weight keeps full precision; None if it can be quantized."""
    kind = type(module)
    if "forward" in vars(module):
        return "it has a forward of its own, which a replacement would not have"
    if is_parametrized(module):
        own = next(iter(module.parametrizations))  # type: ignore[arg-type]
        return (
            f"a parametrization makes its {own}: torch.nn.utils.parametrize."
            f"remove_parametrizations(module, {own!r}) first"
        )
    is_linear = kind in (nn.Linear, unn.Linear) or is_conv1d_of_gpt2(module)
    more = sorted(set(module._parameters) - {"weight", "bias"})
    for own in (name.removesuffix("_orig") for name in more):
        if f"{own}_mask" in module._buffers:
            way = f"torch.nn.utils.prune.remove(module, {own!r})"
            way = "us.compress.make_permanent(model)" if own == "weight" else way
            return f"its {own} is masked (torch.nn.utils.prune): {way} first"
    if more and (is_linear or kind in CONVOLUTIONS):
        return f"a hook makes its weight of {', '.join(more)}"
    if is_linear:
        return None
    if kind not in CONVOLUTIONS:
        named = kind.__name__
        if kind.__module__.startswith("unitscale."):
            named = f"unitscale.nn.{named}"
        return f"{named} is neither nn.Linear nor torch's nn.Conv1d, Conv2d or Conv3d"
    assert isinstance(module, _ConvNd)
    if module.padding_mode != "zeros":
        return f"its padding is {module.padding_mode!r}"
    if scheme.input is not None and scheme.input.groups.scale_shape((2, 2)) != ():
        return f"inputs of a convolution have no {scheme.input.groups}"
    return None


def matrix_of(module: Any) -> Tensor:
    """A layer's weight as a matrix [out, in]."""
    weight: Tensor = module.weight.detach()
    return weight.t().contiguous() if is_conv1d_of_gpt2(module) else weight.flatten(1)


class QuantizedLayer(nn.Module):
    """A linear layer or convolution whose weight is codes and scales.

    Computes `op(round(x, input_scale), weight_codes * weight_scale) + bias` in the dtype of x. What
    is rounded counts as a constant for weights, and passes gradients as they are for inputs.

    Args:
        module: what it stands for; its bias is shared, its weight read.
        scheme: how.
        weight_scale: float32, of the codec's shape; None computes it from amaxes.
        input_scale: float32 (1,), where the scheme is static.
    """

    weight_codes: Tensor
    weight_scale: Tensor
    weight_tensor_scale: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        module: Any,
        scheme: Scheme,
        *,
        weight_scale: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.scheme = type(module).__name__, scheme
        self.shape = tuple(module.weight.shape)
        matrix = matrix_of(module)
        if is_conv1d_of_gpt2(module):
            self.shape = tuple(matrix.shape)
        self.out_features, self.in_features = self.shape[0], math.prod(self.shape[1:])
        self.dtype = module.weight.dtype
        self.op: Callable[..., Tensor] = F.linear
        if isinstance(module, unn.Linear):
            self.kind = "unitscale.nn.Linear"
            self.op = partial(U.linear, constraint=module.constraint)
        if convolve := CONVOLUTIONS.get(type(module)):
            names = ("stride", "padding", "dilation", "groups")
            self.op = partial(convolve, **{name: getattr(module, name) for name in names})
        encoded = encoded_weight(matrix, scheme.weight, weight_scale)
        self.register_buffer("weight_codes", self.packed(encoded.data))
        self.register_buffer("weight_scale", encoded.scale)
        self.register_buffer("weight_tensor_scale", encoded.tensor_scale)
        self.register_buffer("input_scale", input_scale)
        self.register_parameter("bias", module.bias)
        self.train(module.training)

    @property
    def is_paired(self) -> bool:
        """Whether a byte holds two codes."""
        return self.scheme.weight.element.bits == 4 and self.in_features % 2 == 0

    def packed(self, data: Tensor) -> Tensor:
        """Codes as they are stored."""
        if is_integer(self.scheme.weight):
            return data.to(torch.int8)
        return data[:, ::2] | (data[:, 1::2] << 4) if self.is_paired else data

    def encoded(self) -> Encoded:
        """Codes and scales as the codec reads them."""
        data = self.weight_codes
        if is_integer(self.scheme.weight):
            data = data.float()
        elif self.is_paired:
            data = torch.stack((data & 15, data >> 4), -1).flatten(-2)
        return Encoded(data, self.weight_scale, self.weight_tensor_scale)

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The weight that the layer computes with."""
        return self.scheme.weight.decode(self.encoded(), dtype).view(self.shape)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with, in the dtype that it had: for code that asks."""
        return self.decoded(self.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """What the layer takes of an input."""
        codec = self.scheme.input
        if codec is None:
            return x
        if x.requires_grad and torch.is_grad_enabled():
            passed: Tensor = StraightThrough.apply(x, codec, self.input_scale)
            return passed
        return round_input(x, codec, self.input_scale)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output."""
        return self.op(self.rounded(input), self.decoded(input.dtype), self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Codes and scales as bytes: torch 2.13 pickles FP8 tensors and cannot load them again."""
        state = super().__getstate__()
        dtypes = {n: b.dtype for n, b in self.named_buffers(recurse=False) if b.itemsize == 1}
        bits = {name: self.get_buffer(name).view(torch.uint8) for name in dtypes}
        found: dict[str, Any] = {**state, "_buffers": {**self._buffers, **bits}, "dtypes": dtypes}
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, also one without dtypes, as version 0.1 pickled it."""
        dtypes = state.get("dtypes", {})
        super().__setstate__({name: value for name, value in state.items() if name != "dtypes"})
        for name, dtype in dtypes.items():
            self._buffers[name] = self.get_buffer(name).view(dtype)

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names, in a state, of what a plain layer does not have."""
        return (*self._buffers, "_extra_state")

    def get_extra_state(self) -> Tensor:
        """What the codes and scales of a state mean, as the bytes of a text."""
        return torch.tensor(list(self.scheme.numbers.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: it was compared before a tensor was loaded."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load, unless the state is of another scheme.

        Raises:
            ValueError: it is: its codes are other numbers, and would be cast in silence.
        """
        if any(f"{prefix}{name}" in state_dict for name in self._buffers):
            words = state_dict.get(f"{prefix}_extra_state")
            found = bytes(words.tolist()).decode() if isinstance(words, Tensor) else "no known ones"
            if found != self.scheme.numbers:
                raise ValueError(
                    f"load_state_dict: the state of {prefix.removesuffix('.')!r} has {found}; "
                    f"expected {self.scheme.numbers}; quantize the model by the recipe of the state"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.kind}, {self.in_features} -> {self.out_features}, {self.scheme}"

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> "QuantizedLayer":
        """Move, and change the dtype of the bias alone: codes and scales are no values."""
        dtypes = {name: buffer.dtype for name, buffer in self.named_buffers()}
        for name, dtype in dtypes.items():
            bits = torch.uint8 if dtype.itemsize == 1 else torch.int32
            self._buffers[name] = self.get_buffer(name).view(bits)
        super()._apply(fn, recurse)
        for name, dtype in dtypes.items():
            self._buffers[name] = self.get_buffer(name).view(dtype)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype  # a layer may have no bias to ask
        return self


def is_integer(codec: Codec) -> bool:
    """Whether data is whole numbers, which torch.int8 holds."""
    return codec.element.is_uniform


def encoded_weight(matrix: Tensor, codec: Codec, scale: Tensor | None) -> Encoded:
    """A weight's codes and scales, each in its own dtype."""
    grid = codec.grid(matrix.float(), scale=scale)
    if is_integer(codec):
        return grid
    packed = codec.pack(grid)
    assert packed.scale is not None
    return packed


def round_input(x: Tensor, codec: Codec, scale: Tensor | None) -> Tensor:
    """What a layer takes of an input, as a constant."""
    if scale is None:
        return codec.round(x)
    if isinstance(codec.format, BlockFormat):
        return codec.round(x, tensor_scale=scale.reshape(()))
    return codec.round(x, scale=scale)


class StraightThrough(torch.autograd.Function):
    """Rounded forward; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codec: Codec, scale: Tensor | None) -> Tensor:
        return round_input(x, codec, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model by path, each once."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, QuantizedLayer)
    }
