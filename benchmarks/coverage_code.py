"""Models whose operations are the difficulty: own functions, vmap, odd products, tied weights."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from coverage_flow import Frozen, Model, entry, linear
from coverage_torch import LENGTH, WIDTH, words
from torch import Tensor, nn
from zoo_entry import BATCH


class DictOfTensors(Model):
    """Takes and returns dicts within."""

    def __init__(self) -> None:
        super().__init__()
        self.first = DictLayer()

    def body(self, x: Tensor) -> Tensor:
        """Through a dict."""
        out: Tensor = self.first({"state": x, "name": "x"})["state"].mean(1)
        return out

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss in a dict."""
        logits = self.readout(self.body(x))
        return {"logits": logits, "loss": F.cross_entropy(logits, y)}


class DictLayer(nn.Module):
    """A layer from a dict to a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, found: dict[str, Any]) -> dict[str, Any]:
        """The state, changed."""
        return found | {"state": F.gelu(self.layer(found["state"]))}


@dataclass
class Output:
    """What `DataclassOutput` returns."""

    loss: Tensor
    logits: Tensor


class DataclassOutput(Model):
    """Returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear()

    def forward(self, x: Tensor, y: Tensor) -> Output:
        """The loss and the logits."""
        logits = self.readout(F.gelu(self.first(x)).mean(1))
        return Output(loss=F.cross_entropy(logits, y), logits=logits)


class Tied(nn.Module):
    """One matrix embeds words, is used by two layers, and reads out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, WIDTH)
        self.first, self.second = linear(), linear()
        self.second.weight = self.first.weight
        self.readout = nn.Linear(WIDTH, 100, bias=False)
        self.readout.weight = self.embedding.weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        state = self.second(F.gelu(self.first(self.embedding(x))))
        return F.cross_entropy(self.readout(state.mean(1)), y)


class Parameters(Model):
    """Matrices in a ParameterList and a ParameterDict, multiplied by hand."""

    def __init__(self) -> None:
        super().__init__()
        matrices = [nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(3)]
        self.listed = nn.ParameterList(matrices[:2])
        self.named = nn.ParameterDict({"last": matrices[2], "bias": nn.Parameter(torch.zeros(1))})

    def body(self, x: Tensor) -> Tensor:
        """Three products."""
        for matrix in self.listed:
            x = torch.tanh(x @ matrix)
        x = torch.einsum("btd,de->bte", x, self.named["last"]) + self.named["bias"]
        return x.mean(1)


class Swish(torch.autograd.Function):
    """x sigmoid(x), with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient."""
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


class Multiply(torch.autograd.Function):
    """x @ w.T, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(x, w)
        return x @ w.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients."""
        x, w = ctx.saved_tensors
        return grad @ w, grad.flatten(0, -2).mT @ x.flatten(0, -2)


class OwnActivation(Frozen):
    """An activation with a backward pass of its own."""

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.second(Swish.apply(self.first(x))).mean(1)


class OwnProduct(Frozen):
    """A product with a backward pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(True)

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.second(F.gelu(Multiply.apply(x, self.first.weight))).mean(1)


class PerSample(Frozen):
    """torch.func.vmap over the batch."""

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return torch.func.vmap(lambda one: self.second(F.gelu(self.first(one))).mean(0))(x)


class Ensemble(Model):
    """torch.func.functional_call of one module under vmap, over stacked parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, WIDTH, WIDTH) / WIDTH**0.5)

    def body(self, x: Tensor) -> Tensor:
        """The mean of three members."""
        members = torch.func.vmap(F.linear, in_dims=(None, 0))(x, self.weights)
        return F.gelu(members).mean(dim=(0, 2))


class Lora(Frozen):
    """A frozen layer and two small matrices beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(WIDTH, 4, bias=False)
        self.up = nn.Linear(4, WIDTH, bias=False)

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.second(F.gelu(self.first(x) + 2 * self.up(self.down(x)))).mean(1)


class Hooked(Frozen):
    """A hook on a layer multiplies its output by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(WIDTH))
        self.first.register_forward_hook(lambda module, args, out: out @ self.matrix)

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.second(F.gelu(self.first(x))).mean(1)


class Products(Model):
    """The less common products: mv, inner, tensordot, bilinear, baddbmm, addbmm, multi_dot."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def body(self, x: Tensor) -> Tensor:
        """A sum of products."""
        w = self.w
        a = torch.tensordot(x, w, dims=([2], [0]))
        b = torch.baddbmm(a, x, w.expand(BATCH, WIDTH, WIDTH))
        c = torch.inner(b, w) + torch.linalg.matmul(x, w)
        d = torch.addbmm(torch.zeros(LENGTH, WIDTH), x, w.expand(BATCH, WIDTH, WIDTH))
        e = torch.linalg.multi_dot([x[0], w, w])
        f = torch.mv(w, x[0, 0]) + torch.addmv(x[0, 1], w, x[0, 2])
        return (c + d + e + f).mean(1)


class FastWeights(Model):
    """Linear attention whose state is a sum of outer products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def body(self, x: Tensor) -> Tensor:
        """Every step reads the state that the steps before it wrote."""
        q, k, v = self.qkv(x).chunk(3, -1)
        state = torch.einsum("btk,btv->btkv", k.softmax(-1), v).cumsum(1)
        return torch.einsum("btk,btkv->btv", q.softmax(-1), state).mean(1)


class Siamese(Model):
    """One tower for two inputs, and a similarity matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(linear(), nn.GELU(), linear())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The contrastive loss of two halves."""
        left, right = (self.tower(half.mean(1)) for half in x.chunk(2, 1))
        scores = F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T
        return F.cross_entropy(10 * scores, torch.arange(BATCH)) + F.cross_entropy(
            self.readout(left), y
        )


class Autocast(Frozen):
    """Autocast to BF16 within the forward."""

    def body(self, x: Tensor) -> Tensor:
        """Both layers."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.second(F.gelu(self.first(x))).float().mean(1)


CODE = [
    entry("dicts in and out", DictOfTensors),
    entry("dataclass out", DataclassOutput),
    entry("tied weights", Tied, words),
    entry("ParameterList, ParameterDict, einsum", Parameters),
    entry("autograd.Function as activation", OwnActivation),
    entry("autograd.Function as product", OwnProduct),
    entry("torch.func.vmap over modules", PerSample),
    entry("vmap over stacked weights", Ensemble),
    entry("LoRA by hand", Lora),
    entry("forward hook with a product", Hooked),
    entry("mv, inner, tensordot, addbmm, multi_dot", Products),
    entry("fast weights (einsum)", FastWeights),
    entry("two towers and a similarity", Siamese),
    entry("autocast within", Autocast),
]
