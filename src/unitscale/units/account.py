"""What is held between forward and backward: each tensor, by which op, and why in many bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from unitscale.formats import FloatFormat
from unitscale.gemm import rounded
from unitscale.graph.dynamo import example
from unitscale.graph.engine import calling_module
from unitscale.graph.name import module_path, op_name
from unitscale.recipes import Operand
from unitscale.units import keep
from unitscale.units.forward import session_of
from unitscale.units.ops import GEMM, rule_of
from unitscale.units.products import multiplied
from unitscale.units.region import SAVING, is_loss, name_of
from unitscale.units.watching import At

__all__ = ["SavedTensor", "SavedTensors", "saved_tensors"]

LOSSES = frozenset(
    {"cross_entropy", "nll_loss", "log_softmax", "mse_loss", "l1_loss", "smooth_l1_loss"}
    | {"binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "huber_loss"}
)
RANDOM = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
)
PRODUCTS = frozenset(GEMM.values())
MANY = 2
"""Bytes of a value from which on a tensor has to say why it takes so many."""


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """A tensor, or several on one storage, that autograd holds.

    Args:
        module: path of the module in whose forward it was saved; empty at the root.
        op: that saved it.
        dtype, shape: of the tensor that was saved first of this storage.
        bytes: of the storage.
        why: why its values take two bytes or more; None where they take one.
    """

    module: str
    op: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int
    why: str | None

    @property
    def name(self) -> str:
        """Module path and op."""
        return ".".join(filter(None, (self.module, self.op)))


@dataclass
class SavedTensors:
    """What a forward pass held for backward, parameters and buffers apart; prints as a table.

    Args:
        model: the name of its class.
        recipe: the name of its recipe, or "none".
        rows: the largest first.
    """

    model: str
    recipe: str
    rows: list[SavedTensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(row.bytes for row in self.rows)

    @property
    def share_in_few_bits(self) -> float:
        """Share of the bytes in values of one byte; 0 where nothing is held."""
        few = sum(row.bytes for row in self.rows if row.dtype.itemsize < MANY)
        return few / self.bytes if self.rows else 0.0

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as data."""
        return [
            {
                "module": row.module,
                "op": row.op,
                "dtype": dtype_name(row.dtype),
                "shape": list(row.shape),
                "bytes": row.bytes,
                "why": row.why,
            }
            for row in self.rows
        ]

    def __str__(self) -> str:
        lines = [
            f"{self.model}, recipe {self.recipe}: {self.bytes:,} bytes held for backward, "
            f"{self.share_in_few_bits:.1%} in values of one byte"
        ]
        if not self.rows:
            lines.append("  nothing was held: call the model inside, in a mode that records")
        kinds: dict[tuple[str, str, str | None], list[SavedTensor]] = {}
        for row in self.rows:
            kinds.setdefault((dtype_name(row.dtype), row.op, row.why), []).append(row)
        total = self.bytes or 1
        for (dtype, op, why), rows in sorted(kinds.items(), key=lambda kind: -size(kind[1])):
            because = "" if why is None else f": {why}"
            lines.append(
                f"  {len(rows):4} tensors  {size(rows):14,} bytes  {size(rows) / total:6.1%}  "
                f"{dtype:<14} {op}{because}"
            )
        return "\n".join(lines)


def size(rows: list[SavedTensor]) -> int:
    """The bytes of some rows."""
    return sum(row.bytes for row in rows)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without the name of its package."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def saved_tensors(model: nn.Module) -> Iterator[SavedTensors]:
    """List what autograd holds of a forward pass: `with us.saved_tensors(model) as held: ...`.

    The list is whole when the block ends, and its bytes are those that
    `torch.autograd.graph.saved_tensors_hooks` counts, each storage once: what is saved outside of
    the model, in a loss say, is in it as well. Keep the result of the call until the end of the
    block. Inside of a checkpoint nothing is held, so nothing is listed. A graph that is compiled
    tells no ops: the compiler chooses what it holds; `inner="eager"` has them by name. A plain
    model, without a recipe, is listed too.

    Args:
        model: the model that is called inside, or a wrapper or a model around it.
    """
    sessions = {id(s): s for m in model.modules() if (s := session_of(m)) is not None}.values()
    recipes = dict.fromkeys(session.recipe.name for session in sessions)
    found = SavedTensors(type(model).__name__, ", ".join(recipes) or "none")
    audit = Audit(model, has_recipe=bool(recipes))
    hooks = torch.autograd.graph.saved_tensors_hooks(audit.add, lambda tensor: tensor)
    before = [(session.terms, session.terms.at) for session in sessions]
    for session in sessions:
        session.terms.at = audit.at
    try:
        with hooks:
            yield found
    finally:
        for terms, at in before:
            terms.at = at
        found.rows.extend(sorted(audit.rows, key=lambda row: -row.bytes))
        audit.storages.clear()


class Audit:
    """Takes each tensor that autograd saves, and finds which op saved it and why as it is."""

    def __init__(self, model: nn.Module, *, has_recipe: bool) -> None:
        self.has_recipe, self.at = has_recipe, At()
        self.paths = {id(module): path for path, module in model.named_modules()}
        own = (*model.parameters(), *model.buffers())
        self.known = {tensor.untyped_storage()._cdata for tensor in own}
        self.storages: list[torch.UntypedStorage] = []
        self.rows: list[SavedTensor] = []

    def add(self, tensor: Tensor) -> Tensor:
        """Note a tensor. Its storage is kept, so that no other gets its place."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return tensor
        self.known.add(storage._cdata)
        self.storages.append(storage)
        node, why = self.at.node, None
        module, op = self.place()
        if tensor.dtype.itemsize >= MANY:
            why = self.outside() if node is None else self.reason(node, tensor)
        self.rows.append(
            SavedTensor(
                module=module,
                op=op,
                dtype=tensor.dtype,
                shape=tuple(map(int, tensor.shape)),
                bytes=storage.nbytes(),
                why=why,
            )
        )
        return tensor

    def place(self) -> tuple[str, str]:
        """Module and op that are at work."""
        node = self.at.node
        if node is not None:
            return (self.at.prefix + module_path(node)).rstrip("."), told_name(node)
        if self.at.compiled:
            return self.at.prefix.rstrip("."), "compiled graph"
        module = calling_module()
        return self.paths.get(id(module), ""), "outside of graphs"

    def outside(self) -> str:
        """Why a tensor that no known op saved is held as it is."""
        if self.at.compiled:
            return "the compiler chose it of all that backward can be computed from"
        if not self.has_recipe:
            return "the model has no recipe"
        return "saved by code outside of the graphs, which no recipe reaches"

    def reason(self, node: fx.Node, tensor: Tensor) -> str:
        """Why an op of a graph holds a tensor in so many bits."""
        recipe, source = self.at.recipe, self.at.source(tensor)
        assert recipe is not None
        name = name_of(node)
        if not tensor.dtype.is_floating_point:
            return "indices, sizes or other whole numbers"
        if tensor.untyped_storage()._cdata in self.at.scales or is_scale(node, tensor):
            return "scales of what is held in few bits"
        if self.at.is_factor(tensor):
            return "factors of the units"
        if self.at.measures and node.target in (keep.plain, keep.at_points):
            return "a measuring step takes derivatives op by op, at points that it holds whole"
        if rule_of(node).product or node.target in PRODUCTS:
            return self.of_product(node)
        if name in LOSSES or (isinstance(example(node), Tensor) and is_loss(node)):
            return "of a loss: what is rounded there is the gradient that everything begins with"
        if name in RANDOM:
            return "the mask of a dropout, which cannot be drawn again"
        if source is not None and not gets_gradient(source):
            return "takes no gradient: a table or a mask, held as it is"
        if recipe.saved is None:
            return f"recipe {recipe.name} holds operands of products alone in few bits"
        if isinstance(recipe.saved, FloatFormat):
            return f"saved={recipe.saved} is for inputs of element-wise functions; {name} is none"
        return self.unfit(node, tensor, recipe.saved)

    def unfit(self, node: fx.Node, tensor: Tensor, saved: Operand) -> str:
        """Why an op outside of products is in no region, or its region holds a tensor whole."""
        name = name_of(node)
        if "softmax" in name:
            return "probabilities of attention, which stays in the dtype of the model"
        if "batch_norm" in name or "instance_norm" in name:
            return f"{name} may write running statistics, so it is not computed again"
        if node.target in (keep.again, keep.at_points) or name in SAVING:
            along = int(tensor.shape[-1]) if tensor.dim() else 1
            return f"too small for {saved}: its last axis has {along}, or it is a single number"
        return f"{name} is no norm and no element-wise function that is known here"

    def of_product(self, node: fx.Node) -> str:
        """Why a product holds an operand in so many bits."""
        assert self.at.recipe is not None
        if node.target in PRODUCTS:
            return f"the recipe takes it so: {node.kwargs['formats']}"
        if any(x.target is rounded for x in node.all_input_nodes):
            return "its operands are rounded on their way in, and the op holds what it is given"
        found = multiplied(node, self.at.recipe, None, prefix=self.at.prefix)
        why = "of a product in full precision" if found is None else found.why
        if rule_of(node).kind == "attention":
            return f"{why}; its kernel reads q, k, v and its output again"
        return str(why)


def told_name(node: fx.Node) -> str:
    """The name of an op as a person knows it: a region has that of its last op."""
    if node.target in (keep.again, keep.at_points):
        owner, body = node.graph.owning_module, node.args[0]
        assert isinstance(body, fx.Node)
        inner: fx.GraphModule = getattr(owner, str(body.target))
        *_, last, _ = inner.graph.nodes
        return name_of(last)
    return op_name(node)


def is_scale(node: fx.Node, tensor: Tensor) -> bool:
    """Whether a product that rounds keeps a tensor as the scale of an operand."""
    return node.target in PRODUCTS and tensor.dtype == torch.float32 and is_short(node, tensor)


def is_short(node: fx.Node, tensor: Tensor) -> bool:
    """Whether a tensor has fewer values than every operand of a product."""
    sizes = [v.numel() for x in node.all_input_nodes if isinstance(v := example(x), Tensor)]
    return tensor.numel() < min(sizes, default=0)


def gets_gradient(node: fx.Node) -> bool:
    """Whether a gradient reaches a tensor of a graph."""
    value = example(node)
    return not isinstance(value, Tensor) or bool(value.requires_grad)
