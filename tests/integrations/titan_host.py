"""A host that treats a converter as torchtitan 0.2.2 does, without torchtitan.

After its `docs/extension.md`, `protocols/model_converter.py` and `train.py`: a converter is made
from the job and its parallel dimensions; `convert` gets the model on the meta device; then come
activation checkpointing and FSDP2 of each block, memory and initial weights, the optimizer, and the
hook after each of its steps. torchtitan runs the whole on GPUs.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard


class ModelConverter(Protocol):
    """The protocol, as documented."""

    def __init__(self, job_config: Any, parallel_dims: Any) -> None: ...

    def convert(self, model: nn.Module) -> None: ...

    def post_optimizer_hook(self, model: nn.Module | list[nn.Module]) -> None: ...


@dataclass
class ParallelDims:
    """Degrees, under torchtitan's names."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1


@dataclass
class Job:
    """What of a `JobConfig` a converter reads."""

    converters: list[str] = field(default_factory=lambda: ["unitscale"])
    compile_model: bool = False
    components: tuple[str, ...] = ("model", "loss")

    @property
    def model(self) -> SimpleNamespace:
        return SimpleNamespace(converters=self.converters)

    @property
    def compile(self) -> SimpleNamespace:
        return SimpleNamespace(enable=self.compile_model, components=list(self.components))


class Block(nn.Module):
    """A residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    """Blocks in a ModuleDict, as torchtitan's models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(32, 16)
        self.layers = nn.ModuleDict({str(i): Block() for i in range(2)})
        self.output = nn.Linear(16, 32, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            x = layer(x)
        return self.output(x)

    def init_weights(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            whole = torch.randn(p.shape, generator=generator)
            local = p.to_local() if hasattr(p, "to_local") else p
            local.copy_(1 + whole / 8 if p.dim() == 1 else whole / p.shape[-1] ** 0.5)


def train(
    converters: list[ModelConverter], *, steps: int, shard: bool = False, checkpoint: bool = False
) -> tuple[nn.Module, list[float]]:
    """The order of torchtitan's `Trainer.__init__`, and a few steps."""
    with torch.device("meta"):
        model = Model()
    for converter in converters:
        converter.convert(model)
    if checkpoint:
        for name, block in list(model.layers.named_children()):
            model.layers.register_module(name, checkpoint_wrapper(block))
    if shard:
        for block in model.layers.values():
            fully_shard(block)
        fully_shard(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.register_step_post_hook(
        lambda *_, **__: [converter.post_optimizer_hook([model]) for converter in converters]
    )
    tokens = torch.arange(4 * 9).reshape(4, 9) % 32
    losses = []
    for _ in range(steps):
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses
