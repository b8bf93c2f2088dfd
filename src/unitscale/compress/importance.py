"""How much each head, neuron, channel and layer matters, by what flows through it.

Forward passes only, without a recipe's rounding. An axis is read where the architecture's table
says that something takes it: heads and neurons at the input of the two matrices that end a block,
channels at the output of every norm over the residual stream.

Source: Minitron, arXiv 2407.14679, section 2.2; block importance: ShortGPT, arXiv 2403.03853.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unitscale import units
from unitscale.anatomy.architecture import Architecture, architecture_of, in_layer, starred
from unitscale.anatomy.output import called, evaluating, uncompiled
from unitscale.anatomy.shape import shape_of
from unitscale.units.forward import session_of

__all__ = ["Importance", "drawn", "layer_losses", "magnitude", "measure"]

Aggregate = Literal["mean", "l2", "variance"]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Scores, of which larger ones are kept; float64.

    Attributes:
        heads: [layers, query heads].
        neurons: [layers, inner width of the MLPs].
        channels: [width], one ranking for the whole model.
        layers: [layers].
    """

    heads: Tensor
    neurons: Tensor
    channels: Tensor
    layers: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            score = getattr(self, field.name)
            if not score.isfinite().all():
                raise ValueError(
                    f"compress: the importance of {field.name} holds NaN or infinity; give other "
                    "batches, or a model that did not diverge"
                )

    def reversed(self) -> "Importance":
        """The scores with the sign changed: what would be kept last is kept first."""
        return Importance(**{field.name: -getattr(self, field.name) for field in fields(self)})


class Sums:
    """Sums over samples of a score, of which any aggregate can be read."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, 0.0 * torch.ones(()), 0.0 * torch.ones(())

    def add(self, values: Tensor) -> None:
        """Add samples [batch, scores]."""
        own = values.detach().double().cpu()
        self.count += len(own)
        self.first = self.first + own.sum(0)
        self.second = self.second + own.square().sum(0)

    def read(self, aggregate: Aggregate) -> Tensor:
        """The aggregate over all samples."""
        mean = self.first / self.count
        if aggregate == "mean":
            return mean
        if aggregate == "l2":
            return self.second.sqrt()
        return (self.second / self.count - mean.square()).clamp(min=0)


def over_tokens(x: Tensor, mask: Tensor | None, aggregate: Aggregate) -> Tensor:
    """An aggregate over tokens of absolute values [batch, tokens, scores]: [batch, scores]."""
    weight = torch.ones(x.shape[:2], dtype=torch.float64, device=x.device)
    if mask is not None and mask.shape == x.shape[:2]:
        weight = mask.to(weight)
    weight = (weight / weight.sum(1, keepdim=True).clamp(min=1))[..., None]
    x = x.double()
    mean = (weight * x).sum(1)
    if aggregate == "mean":
        return mean
    second = (weight * x.square()).sum(1)
    return second.sqrt() if aggregate == "l2" else (second - mean.square()).clamp(min=0)


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    sequence: Aggregate = "mean",
    batch: Aggregate = "l2",
) -> Importance:
    """Importance by activations, in one forward pass over the batches; the model stays as it is.

    A head's score is the norm of its output, a neuron's and a channel's the absolute value, over
    tokens by `sequence` and then over samples by `batch`. A layer's is 1 - cos(input, output).
    A model under a recipe is measured without rounding, on a copy.

    Args:
        batches: what the model takes: mappings of arguments, tuples, or single tensors. Tokens
            that `attention_mask` leaves out do not count.
        sequence, batch: "mean", "l2" or "variance".

    Raises:
        TypeError: a single batch. ValueError: no batch; one that gives NaN or that masks every
            token; an architecture that is unknown.
    """
    known = architecture_of(model, "compress")
    for name, value in (("sequence", sequence), ("batch", batch)):
        if value not in get_args(Aggregate):
            expected = ", ".join(get_args(Aggregate))
            raise ValueError(f"compress: {name} is {value!r}; expected {expected}")
    several(batches)
    with plain_copy(model) as own:
        probe = Probe(own, known, sequence)
        with probe.listening(), evaluating(own), torch.no_grad():
            for number, given in enumerate(batches):
                refuse_empty(given, number)
                probe.mask = given.get("attention_mask") if isinstance(given, Mapping) else None
                _, output = called(own, given, "compress", number=number)
                check_output(output, number)
        return probe.importance(batch)


def several(batches: Any) -> None:
    """Refuse a single batch in the place of several: it would be taken apart.

    Raises:
        TypeError: it is one, or none.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(
            f"compress: batches is a {type(batches).__name__}; expected several batches, each a "
            "mapping of arguments, a tuple of them or a tensor: put a single one in a list"
        )


def refuse_empty(given: Any, number: int) -> None:
    """Refuse a batch that holds nothing, of which models themselves say something else each.

    Raises:
        TypeError: it is no batch. ValueError: says which is empty, or masks every token.
    """
    if not isinstance(given, Tensor | Mapping | tuple | list):
        raise TypeError(
            f"compress: batch {number} is a {type(given).__name__}; expected a mapping of "
            "arguments, a tuple of them or a tensor"
        )
    parts = given.values() if isinstance(given, Mapping) else given
    tensors = [given] if isinstance(given, Tensor) else [x for x in parts if isinstance(x, Tensor)]
    if not tensors or any(not x.numel() for x in tensors):
        raise ValueError(f"compress: batch {number} is empty; expected samples to learn from")
    mask = given.get("attention_mask") if isinstance(given, Mapping) else None
    if isinstance(mask, Tensor) and not mask.any():
        raise ValueError(
            f"compress: the attention_mask of batch {number} leaves no token; expected some: "
            "it is 1 where a token counts"
        )


def check_output(output: Tensor, number: int) -> None:
    """Refuse a batch that shows nothing.

    Raises:
        ValueError: the output is not finite.
    """
    if not output.isfinite().all():
        raise ValueError(
            f"compress: the model's output for batch {number} holds NaN or infinity; give other "
            "batches, or a model that did not diverge"
        )


class Probe:
    """Hooks that sum up what flows through a model."""

    def __init__(self, model: Any, known: Architecture, sequence: Aggregate) -> None:
        self.model, self.known, self.sequence = model, known, sequence
        self.shape = shape_of(model.config, known)
        self.mask: Tensor | None = None
        self.heads = [Sums() for _ in range(self.shape.depth)]
        self.neurons = [Sums() for _ in range(self.shape.depth)]
        self.layers = [Sums() for _ in range(self.shape.depth)]
        self.channels: dict[str, Sums] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A context in which the hooks are there."""
        handles = []
        attention, mlp = self.known.ends
        for layer in range(self.shape.depth):
            for star, hook in ((attention, self.head_hook), (mlp, self.neuron_hook)):
                module = self.model.get_submodule(in_layer(star, layer))
                handles.append(module.register_forward_pre_hook(hook(layer)))
            module = self.model.get_submodule(f"{self.known.layers}.{layer}")
            handles.append(module.register_forward_hook(self.layer_hook(layer), with_kwargs=True))
        for name, module in self.model.named_modules():
            star, _ = starred(name, self.known.layers)
            uses = self.known.tensors.get(f"{star}.weight", ())
            if len(uses) == 1 and uses[0] is not None and uses[0].role == "gain":
                self.channels[name] = Sums()
                handles.append(module.register_forward_hook(self.channel_hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, sums: Sums, x: Tensor) -> None:
        """Sum up absolute values [batch, tokens, scores]."""
        sums.add(over_tokens(x.abs(), self.mask, self.sequence))

    def head_hook(self, layer: int) -> Callable[..., None]:
        """Reads the outputs of a layer's heads, side by side."""

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].reshape(*inputs[0].shape[:2], self.shape.heads, self.shape.head_dim)
            self.add(self.heads[layer], x.double().norm(dim=-1))

        return hook

    def neuron_hook(self, layer: int) -> Callable[..., None]:
        """Reads the neurons of a layer, after the activation or the gate."""

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.add(self.neurons[layer], inputs[0])

        return hook

    def channel_hook(self, name: str) -> Callable[..., None]:
        """Reads the output of a norm."""

        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            x = output if output.ndim == 3 else output[:, None]
            self.add(self.channels[name], x)

        return hook

    def layer_hook(self, layer: int) -> Callable[..., None]:
        """Reads the input and the output of a layer."""

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
            self.layers[layer].add(over_tokens(1 - cosine[..., None], self.mask, "mean"))

        return hook

    def importance(self, batch: Aggregate) -> Importance:
        """What the hooks have summed up.

        Raises:
            ValueError: there was no batch.
        """
        if not self.layers or not self.layers[0].count:
            raise ValueError("compress: there is no batch; expected at least one to measure with")
        return Importance(
            heads=torch.stack([sums.read(batch) for sums in self.heads]),
            neurons=torch.stack([sums.read(batch) for sums in self.neurons]),
            channels=torch.stack([sums.read(batch) for sums in self.channels.values()]).sum(0),
            layers=torch.stack([sums.read("mean")[0] for sums in self.layers]),
        )


def layer_losses(model: nn.Module, batches: Iterable[Any]) -> Tensor:
    """By how much the loss rises without each layer, [layers]; the model stays as it is.

    It costs as many forward passes as there are layers, and one more.

    Args:
        batches: with `labels`, so that the model gives a loss.
    Raises:
        ValueError: no batch, no loss, or one that is not finite.
    """
    known = architecture_of(model, "compress")
    several(batches)
    given = list(batches)
    if not given:
        raise ValueError("compress: there is no batch; expected at least one to measure with")
    for number, batch in enumerate(given):
        refuse_empty(batch, number)
    with plain_copy(model) as own, evaluating(own), torch.no_grad():
        parent, _, name = known.layers.rpartition(".")
        holder, layers = own.get_submodule(parent), own.get_submodule(known.layers)
        assert isinstance(layers, nn.ModuleList)

        def loss() -> float:
            found = [
                called(own, batch, "compress", number=number)[0]
                for number, batch in enumerate(given)
            ]
            if None in found:
                raise ValueError("compress: the model gives no loss; batches need labels")
            return sum(value for value in found if value is not None) / len(found)

        whole, losses = loss(), []
        try:
            for left_out in range(len(layers)):
                rest = [layer for index, layer in enumerate(layers) if index != left_out]
                setattr(holder, name, nn.ModuleList(rest))
                losses.append(loss() - whole)
        finally:
            setattr(holder, name, layers)
    found = torch.tensor(losses, dtype=torch.float64)
    if not found.isfinite().all():
        raise ValueError("compress: a loss is NaN or infinite; give other batches")
    return found


def magnitude(model: nn.Module) -> Importance:
    """Importance by the weights alone: the norm of all that reads or makes a head, and so on."""
    known = architecture_of(model, "compress")
    config: Any = model.config
    shape = shape_of(config, known)
    size = {"residual": shape.width, "q": shape.heads * shape.head_dim, "ffn": shape.ffn}
    sums = {name: torch.zeros(shape.depth, n, dtype=torch.float64) for name, n in size.items()}
    layers = torch.zeros(shape.depth, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        star, layer = starred(name, known.layers)
        squares = parameter.detach().double().cpu().square()
        if layer is not None:
            layers[layer] += squares.sum()
        for axis, use in enumerate(known.tensors[star]):
            if use is None or use.spaces[0] not in sums:
                continue
            rest = [other for other in range(squares.ndim) if other != axis]
            along = squares.sum(rest) if rest else squares
            sums[use.spaces[0]][layer or 0] += along.reshape(len(use.spaces), -1).sum(0)
    heads = sums["q"].reshape(shape.depth, shape.heads, shape.head_dim).sum(-1)
    return Importance(
        heads=heads.sqrt(),
        neurons=sums["ffn"].sqrt(),
        channels=sums["residual"].sum(0).sqrt(),
        layers=layers.sqrt(),
    )


def drawn(model: nn.Module, seed: int = 0) -> Importance:
    """Random scores, to compare with.

    Raises:
        ValueError: a seed that is no whole number from 0 to 2**62 - 1.
    """
    if type(seed) is not int or not 0 <= seed < 2**62:
        raise ValueError(f"compress: seed is {seed!r}; expected a whole number from 0 to 2**62 - 1")
    known = architecture_of(model, "compress")
    config: Any = model.config
    shape, generator = shape_of(config, known), torch.Generator().manual_seed(seed)

    def scores(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    return Importance(
        heads=scores(shape.depth, shape.heads),
        neurons=scores(shape.depth, shape.ffn),
        channels=scores(shape.width),
        layers=scores(shape.depth),
    )


@contextmanager
def plain_copy(model: nn.Module) -> Iterator[Any]:
    """The model itself if it is plain, and a copy without its recipe otherwise; never compiled."""
    own = model if session_of(model) is None else units.unscale(copy.deepcopy(model))
    with uncompiled(own):
        yield own
