"""The list of what is held for backward: nothing is missing, and many bits have a reason each."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitscale as us
from unitscale.formats import E4M3FN
from unitscale.train.measure import saved_for_backward
from unitscale.units import SavedTensors

WIDTH = 32


class Model(nn.Module):
    """A norm, attention, dropout, a table, a gate, batch statistics, and an embedding."""

    def __init__(self, *, checkpoints: bool = False) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.batch, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)
        self.checkpoints = checkpoints

    def block(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv)
        q = q * torch.arange(q.shape[-1], dtype=q.dtype).cos()
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.drop(self.out(y))
        z = self.up(x)
        if not self.checkpoints:  # it counts batches in place, which a checkpoint refuses
            z = self.batch(z.flatten(0, 1)).view_as(x)
        return x + F.silu(z) * x.cumsum(-1).softmax(-1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpoints else self.block(x)
        return F.cross_entropy(x.flatten(0, 1), ids.flatten())


IDS = torch.arange(24).view(4, 6) % 11


def given(recipe: str | None, *, scale: bool = False, warm: int = 1, **options) -> nn.Module:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Model(checkpoints=options.pop("checkpoints", False)).bfloat16()
    if recipe is not None:
        give = us.unit_scale if scale else us.apply_recipe
        give(model, recipe, **({"inner": "eager"} | options))
    for _ in range(warm):
        model(IDS).backward()
    return model


def as_compiled(module: torch.fx.GraphModule, inputs: object) -> object:
    """A compiler that changes nothing: what a graph of it holds has no names all the same."""
    return module.forward


def assert_complete(held: SavedTensors, model: nn.Module) -> None:
    """The bytes are those that torch's own hooks count, and each wide tensor has a reason."""
    with saved_for_backward(model) as counted:
        loss = model(IDS)
    assert held.bytes == counted.bytes, f"listed {held.bytes}, counted {counted.bytes}"
    assert all((row.why is not None) == (row.dtype.itemsize > 1) for row in held.rows)
    assert all(row.why != "" for row in held.rows)
    del loss


def test_assert_complete_sees_what_is_missing() -> None:
    model = given("coat")
    with us.saved_tensors(model) as held:
        loss = model(IDS)
    del held.rows[0]
    with pytest.raises(AssertionError, match="listed"):
        assert_complete(held, model)
    del loss


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (None, {}),
        ("coat", {}),
        ("coat", {"checkpoints": True}),
        ("coat", {"inner": as_compiled}),
        ("fp8-current", {}),
        ("mxfp8", {}),
        ("coat", {"scale": True, "remeasure": "once"}),
        ("fp8", {"scale": True, "remeasure": "once", "saved": E4M3FN}),
        ("fp8-delayed", {}),
    ],
)
def test_nothing_that_is_held_is_missing(recipe: str | None, options: dict) -> None:
    model = given(recipe, **options)
    with us.saved_tensors(model) as held:
        loss = model(IDS)
    assert_complete(held, model)
    del loss


def test_a_measuring_step_is_listed_as_such() -> None:
    model = given("coat", warm=0, scale=True, remeasure=[0])
    with us.saved_tensors(model) as held:
        model(IDS).backward()
    assert any("a measuring step" in (row.why or "") for row in held.rows)
    assert all(row.why is not None for row in held.rows if row.dtype.itemsize > 1)


def test_every_reason_is_the_right_one() -> None:
    model = given("coat")
    with us.saved_tensors(model) as held:
        loss = model(IDS)
    reasons = {(row.name, row.why) for row in held.rows if row.why}
    for name, words in (
        ("scaled_dot_product_attention", "has no rule for attention products"),
        ("drop.dropout", "the mask of a dropout"),
        ("batch.batch_norm", "may write running statistics"),
        ("mul", "takes no gradient: a table"),
        ("softmax", "probabilities of attention"),
        ("cross_entropy", "of a loss"),
        ("embed.embedding", "indices"),
        ("norm.layer_norm", "scales of what is held in few bits"),
        ("out.linear", "scales of what is held in few bits"),
    ):
        assert any(n == name and words in why for n, why in reasons), (name, reasons)
    few = {row.name for row in held.rows if row.dtype == torch.float8_e4m3fn}
    assert few >= {"norm.layer_norm", "qkv.0.linear", "out.linear", "up.linear", "mul"}
    # One copy for the three products that take the norm's result: the first of them saved it.
    assert not few & {"qkv.1.linear", "qkv.2.linear"}
    del loss


def test_a_recipe_that_holds_products_alone_says_so() -> None:
    model = given("fp8-current")
    with us.saved_tensors(model) as held:
        loss = model(IDS)
    why = {row.why for row in held.rows if row.op == "silu"}
    assert why == {"recipe fp8-current holds operands of products alone in few bits"}
    del loss


def test_table_and_rows() -> None:
    model = given("coat")
    with us.saved_tensors(model) as empty:
        pass
    assert "nothing was held" in str(empty)
    assert (empty.bytes, empty.share_in_few_bits) == (0, 0.0)
    with us.saved_tensors(model) as held:
        loss = model(IDS)
    first, *lines = str(held).splitlines()
    assert first.startswith(f"Model, recipe coat: {held.bytes:,} bytes held for backward")
    assert sum(int(line.split()[0]) for line in lines) == len(held.rows)
    assert sum(int(line.split()[2].replace(",", "")) for line in lines) == held.bytes
    assert [row["bytes"] for row in held.to_json()] == sorted(
        (row.bytes for row in held.rows), reverse=True
    )
    assert all(isinstance(row["dtype"], str) for row in held.to_json())
    del loss


def test_what_is_saved_outside_of_the_graphs_is_listed() -> None:
    model = given("coat")
    with us.saved_tensors(model) as held:
        loss = model(IDS).exp()  # autograd holds the result
    (row,) = (row for row in held.rows if row.op == "outside of graphs")
    assert row.why == "saved by code outside of the graphs, which no recipe reaches"
    del loss


def test_models_within_others_are_listed_with_their_recipes() -> None:
    """As DistributedDataParallel has one: the wrapper itself has no recipe."""
    first, second = given("coat"), given("fp8-current")
    both = nn.ModuleList([first, second])
    with us.saved_tensors(both) as held:
        loss = first(IDS) + second(IDS)
    assert str(held).startswith("ModuleList, recipe coat, fp8-current:")
    reasons = " ".join(row.why or "" for row in held.rows)
    assert "recipe coat has no rule for attention" in reasons
    assert "recipe fp8-current holds operands of products alone" in reasons
    del loss
